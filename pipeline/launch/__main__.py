"""Start one step: ``python -m pipeline.launch SPEC.yaml [JSON]``.

With ``JSON`` (or ``-``, for standard input) the specification is checked and, when nobody else works on the step's
folder, written to ``SPEC.yaml`` first. The step's program then runs in this process or, where its layout has several
ranks, in one process a rank: on this machine, with ``--image`` inside a container, and with ``--nodes`` in a Slurm job
under srun, a container a rank. Its exit status becomes this program's. At the end ``provenance.json`` is written beside
what the step wrote.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from megatron_ext.atomic_files import remove_leftovers, write_text
from megatron_ext.specs import StepSpec
from pipeline.config.located_yaml import ConfigError
from pipeline.data.errors import printable
from pipeline.launch import attempts, ranks
from pipeline.launch.environment import set_environment
from pipeline.launch.image import name_image
from pipeline.launch.lease import Held, take_step
from pipeline.launch.parent import follow
from pipeline.launch.signals import STOPPED
from pipeline.launch.specification import as_yaml, specification
from pipeline.steps.programs import program


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    if given.rank:
        return _as_rank(given.path, given.rank_logs)
    follow()
    if given.log is None:
        return _step(given, given.rank_logs)
    try:
        attempt = attempts.begin(given.log)
        terminal = attempts.redirect(attempt.file)
    except OSError as error:
        print(f"--log {given.log}: {error}", file=sys.stderr)
        return 2
    try:
        status = _logged(given, attempt, terminal)
        sys.stdout.flush()
        return status
    except OSError as error:  # of the log's own disk, which may not hold the reason
        attempts.give_up(terminal)
        print(
            f"{given.path}: failed, exit status 1: {error}. Log: {attempt.file}, if it could be written", file=terminal
        )
        return 1


def _logged(given: argparse.Namespace, attempt: attempts.Attempt, terminal: TextIO) -> int:
    """Run the step with its output in the attempt's log; a line on the terminal where it fails."""
    job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    print(f"attempt {attempt.number} at {_now()} on {_here()}{job}")
    status = _step(given, attempt.ranks)
    if status:
        several = attempt.ranks.exists()
        stopped = ranks.stopped(attempt.file) if several else status == STOPPED
        if several and not stopped:
            print(ranks.explanation(attempt.file, attempt.ranks))
        ended = "stopped as asked" if stopped else "failed"
        print(f"{given.path}: {ended}, exit status {status}. Log: {attempt.log}.{attempt.earlier}", file=terminal)
    return status


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.launch", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, metavar="SPEC.yaml")
    parser.add_argument("json", nargs="?", help="the specification to write there first; '-' reads standard input")
    parser.add_argument("--log", type=Path, help="where everything is printed; earlier attempts' logs are kept beside")
    parser.add_argument("--image", help="container image to run in; default: none")
    parser.add_argument("--nodes", type=int, help="nodes of this Slurm job to spread the ranks over")
    parser.add_argument("--rank", action="store_true", help="be one of the ranks that a launcher has started")
    parser.add_argument("--rank-logs", type=Path, help="folder for what ranks other than the first print")
    return parser.parse_args(argv)


def _step(given: argparse.Namespace, rank_logs: Path | None) -> int:
    try:
        spec = specification(given.path, given.json)
    except (ConfigError, OSError, ValueError) as error:
        print(error if isinstance(error, ConfigError) else f"{given.path}: {error}", file=sys.stderr)
        return 2
    count = spec.ranks
    refused = ranks.refusal(count, given.nodes)
    if refused:
        print(refused, file=sys.stderr)
        return 2
    set_environment(spec)
    if count > 1 and rank_logs is not None:
        rank_logs.mkdir(parents=True, exist_ok=True)
    logs = rank_logs if count > 1 else None
    if given.image:
        name_image(Path(given.image))
    several = count > 1 and given.nodes and "SLURM_JOB_ID" in os.environ
    if given.image and not several:
        # Where the same program takes the lease, without which nothing is written.
        text = None if given.json is None else json.dumps(spec.model_dump(mode="json"))
        return ranks.apptainer(given.path, given.image, logs, text)
    try:
        held = take_step(spec.output)
    except (Held, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        remove_leftovers(spec.output)
        if given.json is not None and not _written(spec, given.path):
            return 2
        if several:
            return ranks.srun(given.path, count, given.nodes, spec.threads, given.image, logs)
        return ranks.local(given.path, count, logs) if count > 1 else _alone(spec, given.path)
    finally:
        held.release()


def _written(spec: StepSpec, path: Path) -> bool:
    try:
        write_text(path, as_yaml(spec))
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return False
    return True


def _alone(spec: StepSpec, path: Path) -> int:
    # In this process: a child would import everything once more.
    started, digest = datetime.now(UTC), _digest(path)
    status, _ = _program(spec, path)
    if status == 0:
        _provenance(spec, digest, started)
    return status


def _as_rank(path: Path, logs: Path | None) -> int:
    """Be one rank; the first one writes the step's provenance, from where the step has run."""
    started, digest = datetime.now(UTC), _digest(path)
    spec = specification(path)
    set_environment(spec)
    rank = os.environ.get("RANK", "0")
    shared = sys.stderr if logs is None or rank == "0" else attempts.redirect(logs / f"{rank}.log")
    status, error = _program(spec, path)
    if error is not None:
        place = f"rank {rank} of {os.environ.get('WORLD_SIZE', '1')} on {_here()}"
        print(f"{place} failed at {_now()}: {_words(error, short=True)[0]}", file=shared, flush=True)
    elif rank == "0" and status == STOPPED:
        print(ranks.ORDERLY)
    elif rank == "0" and status == 0:
        _provenance(spec, digest, started)
    return status


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


def _here() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    status = main()
    if status == 0:
        # Python looks for cycles in all that torch and megatron-core have defined when it ends, for a second. After a
        # failure it may: what the error's frames hold is closed then.
        gc.freeze()
    sys.exit(status)
