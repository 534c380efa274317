"""Run a step's program in this process, alone or as one of several ranks, and say how it ended."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import socket
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from megatron_ext.specs import StepSpec
from pipeline.data.errors import printable
from pipeline.launch import attempts, ranks
from pipeline.launch.environment import set_environment
from pipeline.launch.signals import STOPPED
from pipeline.launch.specification import specification
from pipeline.steps.programs import program


def alone(spec: StepSpec, path: Path) -> int:
    """Run the step of ``path``, whose environment is set; the exit status."""
    started, digest = datetime.now(UTC), _digest(path)
    status, _ = _program(spec, path)
    if status == 0:
        _provenance(spec, digest, started)
    return status


def as_rank(path: Path, logs: Path | None) -> int:
    """Be one rank; the first one writes the step's provenance, from where the step has run."""
    started, digest = datetime.now(UTC), _digest(path)
    spec = specification(path)
    set_environment(spec)
    rank = os.environ.get("RANK", "0")
    shared = sys.stderr if logs is None or rank == "0" else attempts.redirect(logs / f"{rank}.log")
    status, error = _program(spec, path)
    if error is not None:
        place = f"rank {rank} of {os.environ.get('WORLD_SIZE', '1')} on {here()}"
        print(f"{place} failed at {now()}: {_words(error, short=True)[0]}", file=shared, flush=True)
    elif rank == "0" and status == STOPPED:
        print(ranks.ORDERLY)
    elif rank == "0" and status == 0:
        _provenance(spec, digest, started)
    return status


def here() -> str:
    """This machine's name, as Slurm knows it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def now() -> str:
    """The time, to a millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _program(spec: StepSpec, path: Path) -> tuple[int, BaseException | None]:
    """Run the step's program here; its exit status, and the error that it ended with, which is printed."""
    # Held back until a program that can stop in order is ready to: otherwise it would be ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
    try:
        return importlib.import_module(program(spec)).main([str(path)]) or 0, None
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0, None
        failure: BaseException = error
    except Exception as error:
        failure = error
    print("\n".join(_words(failure)), file=sys.stderr)
    return 1, failure


def _words(error: BaseException, short: bool = False) -> list[str]:
    """The lines that Python prints when it ends with ``error``; ``short``: without the calls that led there."""
    if isinstance(error, SystemExit):
        return printable(str(error.code)).splitlines()
    lines = traceback.format_exception_only(error) if short else traceback.format_exception(error)
    return printable("".join(lines)).splitlines()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _provenance(spec: StepSpec, digest: str, started: datetime) -> None:
    from pipeline.launch import provenance

    provenance.write(spec, digest, started)
