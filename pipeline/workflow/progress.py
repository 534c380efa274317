"""What of a run is done and how long the rest may take, a line a step, from what Snakemake says of its jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from megatron_ext.specs import TrainSpec, UnlearnSpec
from pipeline.config.site import Site
from pipeline.data.errors import printable
from pipeline.workflow import failures, resources, work
from pipeline.workflow.jobs import Job
from pipeline.workflow.plan import Plan
from pipeline.workflow.unlearning_jobs import unlearning_steps

STARTING = 5.0  # seconds that every step needs beside its work
PLUGIN = "unlearn"  # by which Snakemake knows the lines
# Rules that run nothing: they are named for what they gather.
GATHERING = ("all", "everything", "fetch", "data", "train", "unlearn", "evaluate", "judge", "robustness", "report")
WIDTH = 48
SHOWN = 1.0  # seconds between two pictures of what runs, on a terminal


def done_of(plan: Plan, job: Job) -> tuple[int, int] | None:
    """Optimizer steps that a running job has written into its step log, and all of them."""
    if not isinstance(job.spec, TrainSpec | UnlearnSpec):
        return None
    total = job.spec.steps if isinstance(job.spec, TrainSpec) else unlearning_steps(plan.config, job.spec)
    try:
        return min(total, (job.spec.output / "resume" / "steps.jsonl").read_bytes().count(b"\n")), total
    except OSError:
        return 0, total


@dataclass
class Running:
    """A job that Snakemake has started: the plan's name of it, what is said of it, and when it began."""

    name: str
    title: str
    begun: float


@dataclass(frozen=True)
class Expected:
    """What a job may take: its program, and seconds on a machine of a certain speed."""

    program: str
    seconds: float

    @property
    def is_long(self) -> bool:
        """Whether it loads a model; what others take says nothing of these, nor the other way round."""
        return self.seconds > STARTING


def expected(plan: Plan, job: Job) -> Expected:
    """What a job may take, good for comparing jobs with each other."""
    seconds = STARTING
    if isinstance(job.spec, resources.ModelStep):
        with suppress(ValueError):  # ranks that do not spread over the nodes of some cluster
            seconds += resources.needs(plan, Site(), job).seconds - resources.START
    return Expected(job.spec.program, seconds)


class Forecast:
    """How long the rest of a run may take, by what the jobs that are done have taken."""

    def __init__(self, expected: Mapping[str, Expected]):
        """Begin with nothing done.

        Args:
            expected: What each of the plan's jobs may take.
        """
        self.expected, self.taken = dict(expected), dict[str, float]()

    def seconds(self, name: str) -> float | None:
        """Seconds of a job from its start to its end, by those of its program that are done, or by all that load a
        model; ``None`` while none is."""
        job = self._expected(name)
        alike = [other for other in self.taken if self._expected(other).program == job.program]
        if not alike and not job.is_long:
            return job.seconds
        alike = alike or [other for other in self.taken if self._expected(other).is_long]
        if not alike:
            return None
        scale = sum(self.taken[other] for other in alike) / sum(self._expected(other).seconds for other in alike)
        return scale * job.seconds

    def left(self, waiting: int, running: Mapping[str, float], elapsed: float) -> float | None:
        """Seconds until the run is done; ``None`` while nothing says how long one of the jobs may take.

        Args:
            waiting: How many jobs have not begun, which are taken to be the plan's last ones.
            running: The jobs that run, each with the seconds that it has run for.
            elapsed: Seconds since the run began.
        """
        if not self.taken:
            return None
        later = [name for name in self.expected if name not in self.taken and name not in running]
        whole = [self.seconds(name) for name in later[max(0, len(later) - waiting) :]]
        begun = [(self.seconds(name), gone) for name, gone in running.items()]
        if None in whole or any(seconds is None for seconds, _ in begun):
            return None
        rest = sum(seconds or 0.0 for seconds in whole)
        rest += sum(max(1.0, (seconds or 0.0) - gone) for seconds, gone in begun)
        busy = sum(self.taken.values()) + sum(running.values())
        return rest / max(1.0, busy / max(elapsed, 1e-9))

    def _expected(self, name: str) -> Expected:
        return self.expected.get(name, Expected(name, STARTING))


class Progress:
    """Prints a line for each step that is done and, on a terminal, one for each that runs."""

    def __init__(self, plan: Plan, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        """Begin with nothing done.

        Args:
            plan: The experiment's jobs.
            stream: Where lines go.
            clock: Seconds.
        """
        self.plan, self.stream, self.clock = plan, stream, clock
        self.forecast = Forecast({name: expected(plan, job) for name, job in plan.jobs.items()})
        self.folders = {str(job.spec.output.absolute()): name for name, job in plan.jobs.items()}
        self.total: int | None = None
        self.done = 0
        self.running: dict[int, Running] = {}
        self.begun = clock()
        self._drawn, self._lock = 0, threading.RLock()
        if stream.isatty():
            threading.Thread(target=self._redraw, daemon=True).start()

    def begin(self, number: int, title: str, outputs: list[str]) -> None:
        """A job has been started; ``outputs`` has the specification in its folder."""
        folders = [str(Path(file).absolute().parent) for file in outputs if Path(file).name == "spec.yaml"]
        name = next((self.folders[folder] for folder in folders if folder in self.folders), title)
        if name in self.plan.jobs:
            title = work.title(self.plan, self.plan.jobs[name]) or title
        with self._lock:
            self.running[number] = Running(name, title, self.clock())

    def end(self, number: int) -> None:
        """A job is done."""
        with self._lock:
            job = self.running.pop(number, None)
            if job is None:
                return  # a rule that only gathers others
            self.done += 1
            taken = self.clock() - job.begun
            self.forecast.taken[job.name] = taken
            place = f"{self.done:>{len(str(self.total or ''))}}/{self.total or '?'}"
            self.say(f"{place}  {job.title:<{WIDTH}}  {duration(taken):>12}  {self.rest()}".rstrip())

    def fail(self, number: int, rule: str, why: str | None, logs: list[str], outputs: list[str]) -> None:
        """A job has failed, and may be started again; five lines say why.

        Args:
            number: Snakemake's number of the job.
            rule: Its rule's name.
            why: What the executor says.
            logs: The step's own log, and Slurm's.
            outputs: What the job writes.
        """
        with self._lock:
            job = self.running.pop(number, None)
            taken = f", after {duration(self.clock() - job.begun)}" if job else ""
            lines = failures.explained(f"{job.title if job else rule}{taken}", why, [Path(log) for log in logs])
            failures.note(outputs, lines)
            self.say("\n".join(lines))

    def rest(self) -> str:
        """The time left, in words."""
        if self.total is None or self.done >= self.total:
            return ""
        now = self.clock()
        gone = {job.name: now - job.begun for job in self.running.values()}
        left = self.forecast.left(self.total - self.done - len(gone), gone, now - self.begun)
        return "" if left is None else f"about {duration(left)} left"

    def say(self, text: str) -> None:
        """Print lines above those of what runs."""
        with self._lock:
            self._clear()
            self.stream.write(printable(text) + "\n")  # the ends of logs hold whatever a step has met
            self.stream.flush()

    def _redraw(self) -> None:
        while True:
            time.sleep(SHOWN)
            with self._lock:
                self._clear()
                lines = [self._line(job) for job in self.running.values()]
                self.stream.write("".join(f"{line}\n" for line in lines))
                self.stream.flush()
                self._drawn = len(lines)

    def _line(self, job: Running) -> str:
        steps = done_of(self.plan, self.plan.jobs[job.name]) if job.name in self.plan.jobs else None
        share = f"step {steps[0]} of {steps[1]}" if steps else ""
        return f"...  {job.title:<{WIDTH}}  {duration(self.clock() - job.begun):>12}  {share}".rstrip()

    def _clear(self) -> None:
        if self._drawn:
            self.stream.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def duration(seconds: float) -> str:
    """``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def use(progress: Progress) -> None:
    """Let Snakemake, in this process, show ``progress`` in place of its own lines where it is told ``--logger``."""
    from types import ModuleType

    from snakemake.logging import DefaultFormatter
    from snakemake_interface_logger_plugins.base import LogHandlerBase
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    words = DefaultFormatter()

    class Lines(LogHandlerBase):
        """What Snakemake calls with every record."""

        writes_to_stream = True
        writes_to_file = False
        has_filter = has_formatter = True
        needs_rulegraph = False

        def emit(self, record: logging.LogRecord) -> None:
            """Take notice of a record."""
            try:
                _notice(progress, record, words)
            except Exception:
                self.handleError(record)

    plugin = ModuleType(PLUGIN)
    plugin.LogHandler = Lines  # type: ignore[attr-defined] # what Snakemake looks for in a plugin's module
    LoggerPluginRegistry().register_plugin(PLUGIN, plugin)


def _notice(progress: Progress, record: logging.LogRecord, words: logging.Formatter) -> None:
    event, data = str(getattr(record, "event", "")), vars(record)
    if event == "run_info":
        progress.total = sum(count for name, count in data["stats"].items() if name not in (*GATHERING, "total"))
    elif event == "job_info":
        if data["rule_name"] not in GATHERING:
            failures.begin(data["log"])
            progress.begin(data["jobid"], data["rule_msg"] or data["rule_name"], list(data["output"]))
    elif event == "job_finished":
        progress.end(data["job_id"])
    elif event == "job_error":
        progress.fail(data["jobid"], data["rule_name"], data["rule_msg"], list(data["log"]), list(data["output"]))
    elif record.levelno >= logging.WARNING and not failures.repeated(record):
        progress.say(failures.of_system(record) or words.format(record))
