"""A disk that is full, broken, read-only or slow, at a moment of chance: each step, and the run with its Snakemake.

A tiny experiment is run once, undisturbed. In each round what one step wrote is removed, and the step is started again
on a disk that fails (``disk_faults.c``), for good or once. It must end, and well or with what is wrong with the disk
said; no file may be there under its name that is not whole. The same command on a good disk must then end with the
bits of the undisturbed run and leave nothing beside them.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.config.load import load
from pipeline.launch.environment import RUN
from pipeline.workflow.failures import explained
from pipeline.workflow.jobs import canonical
from pipeline.workflow.plan import Plan
from tests.campaign import kills

SOURCE = Path(__file__).with_name("disk_faults.c")
METHOD = {"method": "npo", "overrides": {"training": {"epochs": 2, "checkpoint_every": 1}}}
EXPERIMENT = {**kills.EXPERIMENT, "layout": 1, "methods": [METHOD], "evaluation": {"options": {"max_new_tokens": 4}}}
# Name, error, microseconds of each operation.
KINDS = {"full": (errno.ENOSPC, 0), "broken": (errno.EIO, 0), "read-only": (errno.EROFS, 0), "slow": (0, 3000)}
RUNS = "the run"  # besides the steps, by name
ALWAYS = 2**62
CARD = "README.md"  # beside a model, which the report writes
SECONDS = 600.0  # that a step may take, on a bad disk too
STATES = {"resume", "answers"}  # folders of what a step goes on from, which looks at what it finds there
LEFTOVER = re.compile(r"\.(?!(snakemake_timestamp|unchanged)$).*")  # hidden: what is being written, and leases
OTHERS = ("logs", "report-partial", ".snakemake")  # of a run: nobody reads them back


def built(folder: Path) -> Path | None:
    """The layer as a library in ``folder``; ``None`` where there is no Linux with a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "disk_faults.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@dataclass(frozen=True)
class Fault:
    """What the disk does: ``kind`` of ``KINDS``, from its operation ``first`` on, once or for good."""

    kind: str
    first: int
    once: bool = False

    def __str__(self) -> str:
        return self.kind if self.kind == "slow" else f"{self.kind}, {'once' if self.once else 'for good'}"


NONE = Fault("full", ALWAYS)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and how many operations of the disk there were that the fault could meet."""

    status: int | None
    printed: str
    operations: int


class Disk:
    """The layer over one folder, told what to do by a file beside it."""

    def __init__(self, library: Path, below: Path) -> None:
        self.control = library.with_suffix(".control")
        self.variables = {"DISK_FAULTS": str(self.control), "DISK_FAULTS_BELOW": str(below.resolve())}
        self.variables["LD_PRELOAD"] = str(library)

    def run(self, command: Sequence[str], cwd: Path, fault: Fault, seconds: float = SECONDS) -> Ended:
        """Run a command on the disk with that fault; its status is ``None`` where it did not end in time."""
        error, pause = KINDS[fault.kind]
        self.control.write_bytes(struct.pack("5q", 0, fault.first, fault.first if fault.once else ALWAYS, error, pause))
        environment = {name: value for name, value in os.environ.items() if name != RUN} | self.variables
        with tempfile.TemporaryFile() as printed:
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=printed, stderr=printed, start_new_session=True
            )
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            printed.seek(0)
            text = printed.read().decode(errors="replace")
        with self.control.open("r+b") as file, mmap.mmap(file.fileno(), 0) as numbers:
            return Ended(status, text, struct.unpack_from("q", numbers)[0])


class World:
    """An experiment, its files after an undisturbed run, and the disk that its results lie on."""

    def __init__(self, folder: Path, library: Path, only: Sequence[str] = ()) -> None:
        """Run the experiment; where ``only`` names steps, these alone."""
        for kind, content in (("benchmarks", kills.BENCHMARK), ("experiments", EXPERIMENT)):
            (folder / kind).mkdir()
            (folder / kind / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        self.folder, self.results = folder, folder / "results" / "tiny"
        experiment = folder / "experiments" / "tiny.yaml"
        jobs = Plan(load(str(experiment)), folder / "results").jobs
        self.specs = {name: canonical(job.spec) for name, job in jobs.items() if not only or name in only}
        self.disk = Disk(library, self.results)
        self.whole = [sys.executable, "-m", "pipeline", "run", str(experiment), "--results", str(folder / "results")]
        self.files: dict[Path, bytes] = {}
        self.changing: set[Path] = set()  # files that two undisturbed runs write differently: they hold times
        for step in only or (RUNS,):
            self._must(step)
        self.files = self._read(self.results)

    def operations(self, step: str, kind: str) -> int:
        """How many operations of the disk a fault could meet in a step, of which nothing is there yet."""
        self.remove(step)
        count = self._must(step, Fault(kind, ALWAYS)).operations
        self.changing |= {name for name, content in self._of(step).items() if content != self.files.get(name)}
        return count

    def remove(self, step: str) -> None:
        """Remove what a step wrote; of the run, its unlearning and all that follows."""
        folders = ("unlearned", "evaluation", "report", "report-partial") if step == RUNS else (step,)
        for folder in folders:
            shutil.rmtree(self.results / folder, ignore_errors=True)

    def start(self, step: str, fault: Fault) -> Ended:
        """Start a step as its job does, or the run."""
        if step == RUNS:
            return self.disk.run(self.whole, self.folder, fault)
        spec = self.results / step / "spec.yaml"
        command = [sys.executable, "-m", "pipeline.launch", str(spec), self.specs[step], "--log", str(self.log(step))]
        return self.disk.run(command, self.folder, fault)

    def log(self, step: str) -> Path:
        """Where a step's job writes its log."""
        return self.results / "logs" / f"{step}.log"

    def wrong(self, step: str, fault: Fault) -> str | None:
        """What is wrong with how a step, of which nothing is there, meets a fault; ``None``: nothing."""
        self.remove(step)
        log = self.log(step)
        log.unlink(missing_ok=True)
        ended = self.start(step, fault)
        if ended.status is None:
            return f"did not end in {SECONDS:.0f} s"
        if ended.status and (silent := self._silent(step, fault, ended)):
            return silent
        if half := [str(name) for name in self._of(step) if self._is_half(name)]:
            return f"status {ended.status}, and not whole: {', '.join(half)}"
        again = self.start(step, NONE)
        if again.status:
            return f"on a good disk, status {again.status}: {again.printed[-300:]}"
        found, expected = self._of(step), {name for name in self.files if self._belongs(name, step)}
        if set(found) != expected:
            return f"in the end other files: {', '.join(map(str, set(found) ^ expected))}"
        other = [str(name) for name in found if name not in self.changing and found[name] != self.files[name]]
        hidden = [str(path) for path in self._hidden(step)]
        return f"in the end: {', '.join([*other, *hidden])}" if other or hidden else None

    def _silent(self, step: str, fault: Fault, ended: Ended) -> str | None:
        """Where the disk's error, or what to do, is not told."""
        if fault.kind == "slow":
            return f"status {ended.status}: {ended.printed[-300:]}"
        lines, error = "\n".join(explained(step, None, [self.log(step)])), os.strerror(KINDS[fault.kind][0])
        # Where the log itself could not be written, the launcher says so on the terminal, beside what the log lacks.
        told = re.search(r"(?:failed, exit status \d+|--log [^:\n]+): .*", ended.printed)
        words = ended.printed if step == RUNS else told[0] if told and error in told[0] else lines
        if "Traceback" in words or error not in words:
            return f"status {ended.status}, {error!r} is not told: {lines} {ended.printed[-1500:]}"
        return None

    def _must(self, step: str, fault: Fault = NONE) -> Ended:
        ended = self.start(step, fault)
        if ended.status:
            raise RuntimeError(f"{step} failed undisturbed:\n{ended.printed[-3000:]}")
        return ended

    def _is_half(self, name: Path) -> bool:
        """Whether a file that has its final name is not what an undisturbed step writes there."""
        content = (self.results / name).read_bytes()
        if name not in self.changing:
            return content != self.files.get(name)
        try:
            if name.suffix in (".json", ".jsonl"):
                lines = [content] if name.suffix == ".json" else content.splitlines()
                return not all(isinstance(json.loads(line), dict | list) for line in lines) or not content
        except ValueError:
            return True
        return abs(len(content) - len(self.files.get(name, b""))) > 200

    def _of(self, step: str) -> dict[Path, bytes]:
        return {name: content for name, content in self._read(self.results).items() if self._belongs(name, step)}

    def _belongs(self, name: Path, step: str) -> bool:
        """Whether a file is a result of a step; resume states and a run's logs are nobody's."""
        own = name.is_relative_to(step) if step != RUNS else name.parts[0] not in OTHERS
        own &= step == RUNS or step == "report" or name.name != CARD
        return own and not STATES & set(name.parts) and not any(part.startswith(".") for part in name.parts)

    def _hidden(self, step: str) -> list[Path]:
        folder = self.results if step == RUNS else self.results / step
        names = [path.relative_to(self.results) for path in folder.rglob("*")]
        return [name for name in names if LEFTOVER.fullmatch(name.name) and name.parts[0] not in OTHERS]

    @staticmethod
    def _read(folder: Path) -> dict[Path, bytes]:
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rounds(world: World, count: int, chance: random.Random) -> int:
    """Let ``count`` faults meet the steps and the run in turn; prints each, and returns how many ended wrong."""
    steps, wrong, known = [*world.specs, RUNS], 0, dict[tuple[str, str], int]()
    for number in range(count):
        step, kind = steps[number % len(steps)], list(KINDS)[number // len(steps) % len(KINDS)]
        begun = time.monotonic()
        if (step, kind) not in known:
            known[step, kind] = world.operations(step, kind)
        fault = Fault(kind, chance.randint(1, max(known[step, kind], 1)), once=chance.random() < 0.3)
        problem = world.wrong(step, fault)
        wrong += problem is not None
        place = f"{fault.first} of {known[step, kind]}"
        taken = f"{time.monotonic() - begun:4.0f} s"
        print(f"{number + 1:3}  {step:<24} {fault!s:<20} {place:<14} {taken}  {problem or 'right'}", flush=True)
    return wrong


def run(count: int, seed: int) -> int:
    """Let ``count`` faults meet the steps and the run in turn.

    Returns:
        How many were not met as they should be; 0, with a word, where there is no C compiler.
    """
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        library = built(Path(name))
        if library is None:
            print("disk: no C compiler, so the layer of faults cannot be built: nothing was tried")
            return 0
        (Path(name) / "world").mkdir()
        wrong = rounds(World(Path(name) / "world", library), count, random.Random(seed))
    print(f"disk: {count - wrong} of {count} faults ended in going on, or in what to do, and then with the same bits")
    return wrong
