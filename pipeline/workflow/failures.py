"""A failed job in five lines: the step, what happened, the first error, where its log is, and what to do.

Everything else stays in the logs. Snakemake itself prints a job's inputs and its specification, once for each of the
Snakemakes that a job of Slurm's runs in, and stops showing logs at the first one that is empty.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.errors import printable
from pipeline.launch.ranks import FAILED, killed

LAST = 300_000  # bytes of a log's end that are read
WIDTH = 300  # characters of an error that are shown
COMMAND = "CalledProcessError in file"  # what Snakemake says of a job that failed before it says which
STATUS = re.compile(r"SLURM status is: '(\w+)'")
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
    ("apptainer|singularity", "on that node Apptainer must be on PATH: ask for it, or leave the node out in site.yaml"),
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
        what = f"Slurm says {status[1]}{f'; {what}' if what else ''}"
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
    return "no log says anything", _line(outside[0] if outside else message), logs[0]


def _advice(text: str) -> str:
    return next((what for pattern, what in ADVICE if re.search(pattern, text)), f"correct it, then {AGAIN}")


def _line(text: str) -> str:
    """One line of a text, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def _end(log: Path) -> str:
    """The end of a log; empty where there is none. What a progress bar overwrote is left out."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - LAST))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.split("\n"))


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
            handler.addFilter(lambda record: not repeated(record))


def _in_words(whole: Callable[[logging.LogRecord], str]) -> Callable[[logging.LogRecord], str]:
    return lambda record: of_system(record) or whole(record)


def of_system(record: logging.LogRecord) -> str | None:
    """What the system refused Snakemake itself, such as to remove a file, without a traceback; else ``None``."""
    text = str(record.msg).rstrip()
    last = text.rpartition("\n")[2]
    return f"Snakemake stopped: {last}" if text.startswith(TRACEBACK) and "[Errno " in last else None


def repeated(record: logging.LogRecord) -> bool:
    """Whether a record says once more, with the whole command, that a job has failed."""
    return COMMAND in str(record.msg)
