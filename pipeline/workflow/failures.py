"""A failed job in five lines: the step, what happened, the first error, where its log is, and what to do.

Everything else stays in the logs. Snakemake itself prints a job's inputs and its specification, once for each of the
Snakemakes that a job of Slurm's runs in, and stops showing logs at the first one that is empty.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.errors import printable
from pipeline.launch.ranks import FAILED, killed

LAST = 300_000  # bytes of a log's end that are read
TRIED = 2**16  # bytes that are written to see whether a log can be
WIDTH = 300  # characters of an error that are shown
COMMAND = "CalledProcessError in file"  # what Snakemake says of a job that failed before it says which
SHUT = "cannot schedule new futures after shutdown"  # what a thread of Snakemake's says of an end that is meant
STATUS = re.compile(r"SLURM status is: '(\w+)'")
HOST = re.compile(r"^ +Host: (\S+)$", re.MULTILINE)  # in the head of Slurm's log, by the Snakemake that runs in the job
EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Missing|Held)\b.*)$", re.MULTILINE)
# What Slurm, a shell, Apptainer and Python say where a step did not come to write a log.
OUTSIDE = re.compile(
    r"^.*(?:FATAL:|slurmstepd: error:|srun: error: (?!\S+: task \d+: Exited)|command not found|: not found|"
    r"No such file or directory|Permission denied|No space left|cannot execute|No module named|"
    r"exceeded memory limit|CANCELLED AT|[Ee]xecv|SLURM sbatch failed|submission failed).*$",
    re.MULTILINE,
)
TRACEBACK = "Traceback (most recent call last)"
BAR = "%|"  # stands in a progress bar
STOPPED = re.compile(r"^.*(asked to stop: .*)$", re.MULTILINE)
AGAIN = "start the same command again: what is done stays, and it goes on from there"
# What to do, by the first of these that stands in what happened or in the error.
ADVICE = (
    ("CUDA out of memory|OutOfMemoryError", "a smaller micro_batch or token_budget, or a layout of more ranks"),
    ("OUT_OF_MEMORY|exceeded memory limit", "the next attempt asks for more; then memory_per_node_mb, or more ranks"),
    ("TIMEOUT|DUE TO TIME LIMIT", "the next attempt has more time; then time_factor in site.yaml"),
    ("NODE_FAIL|BOOT_FAIL", f"{AGAIN}; Slurm chooses another node"),
    ("asked to stop|CANCELLED", AGAIN),
    ("No space left|Disk quota", f"make room, then {AGAIN}"),
    ("fuse", "let users open /dev/fuse on that node, or install squashfuse there (docs/cluster.md)"),
    (
        "apptainer|singularity",
        "on that node Apptainer must be on PATH: ask for it, or leave it out by `extra: --exclude=NODE` in site.yaml",
    ),
    ("FATAL:|squashfs|[Ii]mage", "look at the image: `apptainer test FILE`; copy it again, or `make image`"),
    ("No module named|python", "the clone's .venv must work on that node: the same Python at the same path"),
    ("sbatch|submission", "what sbatch says, in site.yaml"),
    ("NaN|not finite|[Nn]on-finite|diverged", "a smaller learning rate, or a longer warm-up"),
)


def explained(step: str, message: str | None, logs: Sequence[Path]) -> list[str]:
    """The five lines.

    Args:
        step: What failed, in a person's words.
        message: What the executor says of it.
        logs: The step's own log, and Slurm's.
    """
    status = STATUS.search(message or "")
    what, error, log = _found(message or "", logs)
    if status:
        host = next((found[1] for log in logs[1:] if (found := HOST.search(_whole(log)))), None)
        what = f"Slurm says {status[1]}{f' on {host}' if host else ''}{f'; {what}' if what else ''}"
    shown = dict.fromkeys([*(own for own in logs[:1] if _end(own).strip()), *([log] if log else [])])
    lines = [
        f"failed: {step}",
        f"  what happened: {what or 'the step ended with an error'}",
        f"  first error: {error or 'none is named'}",
        f"  log: {', '.join(map(str, shown)) or 'there is none'}",
        f"  what to do: {_advice(f'{what} {error}')}",
    ]
    return [printable(line) for line in lines]


_noted: dict[Path, list[str]] = {}


def note(outputs: Iterable[str], lines: list[str]) -> None:
    """Keep the lines of a failed job, for the report.

    Args:
        outputs: The files that the job writes, its specification among them.
        lines: Its five lines.
    """
    for file in outputs:
        if Path(file).name == "spec.yaml":
            _noted[Path(file).absolute().parent] = lines


def noted() -> dict[Path, list[str]]:
    """The lines of the jobs that failed in this process, by the folders that they write."""
    return dict(_noted)


def _found(message: str, logs: Sequence[Path]) -> tuple[str, str, Path | None]:
    """What happened, the first error and the log that names it; the step's own log is asked first."""
    outside = OUTSIDE.search(message)
    if not logs:
        return "", _line(message), None
    for log in logs:
        text = _end(log)
        own = log == logs[0]
        if own and (dead := killed(text)):  # the others failed because it was gone
            return "a rank was killed", _line(dead[0]), log
        if own and (failed := sorted(FAILED.finditer(text), key=lambda found: found["time"])):
            return "a rank failed", _line(failed[0][0]), log
        if own and (stopped := STOPPED.findall(text)):
            return stopped[-1][:WIDTH], "", log
        if own and (named := EXCEPTION.findall(text)):
            return "", _line(named[-1]), log
        if reason := OUTSIDE.search(text):
            return ("" if own else "the step did not get to write an error"), _line(reason[0]), log
    for log in logs:
        if lines := [line for line in _end(log).splitlines()[1:] if line.strip() and BAR not in line]:
            return "", _line(lines[-1]), log
    refused = next(filter(None, map(_refusal, dict.fromkeys(log.parent for log in logs))), None)
    return "no log says anything", _line(refused or (outside[0] if outside else message)), logs[0]


def _refusal(folder: Path) -> str | None:
    """Why nothing can be written into a folder of logs, where that is so now: a full disk keeps no word of itself."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(TRIED))
            os.fsync(file.fileno())
    except OSError as error:
        return f"{folder}, where its log lies, cannot be written: [Errno {error.errno}] {os.strerror(error.errno or 0)}"
    return None


def _advice(text: str) -> str:
    return next((what for pattern, what in ADVICE if re.search(pattern, text)), f"correct it, then {AGAIN}")


def _line(text: str) -> str:
    """One line of a text, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def _end(log: Path) -> str:
    """The end of what the last attempt wrote into a log; empty where it wrote none. What a progress bar overwrote is
    left out."""
    text = "" if _state(log) == _before.get(log.absolute()) else _whole(log)
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.split("\n"))


def _whole(log: Path) -> str:
    """A log, or the end of a long one; empty where there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LAST))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


_before: dict[Path, tuple[int, ...]] = {}


def begin(logs: Iterable[str]) -> None:
    """Take notice that a job is started anew: what lies in its logs now is of an earlier attempt."""
    for log in map(Path, logs):
        if state := _state(log):
            _before[log.absolute()] = state


def _state(log: Path) -> tuple[int, ...] | None:
    """What tells one file and its content from another; by clocks of the same machine alone."""
    try:
        with log.open("rb") as stream:  # over NFS, opening asks the server
            state = os.fstat(stream.fileno())
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def of_record(data: Mapping[str, Any]) -> list[str]:
    """The five lines for what Snakemake records of a job that failed."""
    folders = [Path(file).parent for file in data["output"] if Path(file).name == "spec.yaml"]
    logs = [Path(log) for log in data["log"]]
    job = data["aux"].get("external_jobid")
    name = f"{data['rule_name']}{f', {folders[0]}' if folders else ''}{f' (Slurm job {job})' if job else ''}"
    lines = explained(name, data["rule_msg"], logs)
    note(data["output"], lines)
    return lines


def shorten(handlers: Iterable[logging.Handler]) -> None:
    """Let Snakemake print these five lines for each job that failed; its own log keeps what it would have printed.

    Args:
        handlers: Those of Snakemake's logger.
    """
    for handler in handlers:
        words: Any = handler.formatter
        if hasattr(words, "_format_job_error") and not isinstance(handler, logging.FileHandler):
            words._format_job_error = of_record
            words.format = _in_words(words.format)
            handler.filters.insert(0, _heeded)  # before what is asked not to be shown is left out


def _heeded(record: logging.LogRecord) -> bool:
    """Whether a record is shown; takes notice of jobs that begin."""
    if getattr(record, "event", None) == "job_info":
        begin(vars(record)["log"])
    return not repeated(record)


def _in_words(whole: Callable[[logging.LogRecord], str]) -> Callable[[logging.LogRecord], str]:
    return lambda record: of_system(record) or whole(record)


def of_system(record: logging.LogRecord) -> str | None:
    """What the system refused Snakemake itself, such as to remove a file, without a traceback; else ``None``."""
    text = str(record.msg).rstrip()
    last = text.rpartition("\n")[2]
    return f"Snakemake stopped: {last}" if text.startswith(TRACEBACK) and "[Errno " in last else None


def repeated(record: logging.LogRecord) -> bool:
    """Whether a record says once more, with the whole command, that a job has failed; or that Snakemake ends, which is
    said before."""
    return COMMAND in str(record.msg) or str(record.msg).strip() == SHUT
