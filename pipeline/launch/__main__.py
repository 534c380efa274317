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
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import psutil

from megatron_ext.atomic_files import remove_leftovers, write_text
from megatron_ext.specs import StepSpec
from megatron_ext.summary import LAUNCHED
from pipeline.config.located_yaml import ConfigError
from pipeline.launch import attempts, forked, in_process, ranks
from pipeline.launch.environment import set_environment
from pipeline.launch.image import name_image
from pipeline.launch.lease import Held, take_step
from pipeline.launch.parent import follow
from pipeline.launch.signals import STOPPED
from pipeline.launch.specification import as_yaml, specification


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    if given.rank:
        return in_process.as_rank(given.path, given.rank_logs)
    follow()
    os.environ[LAUNCHED] = str(psutil.Process().create_time())
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
    print(f"attempt {attempt.number} at {in_process.now()} on {in_process.here()}{job}")
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
    """Run a step of one rank: forked from a process that has its libraries loaded, where there is one; else here,
    because a child would load everything once more."""
    status = forked.run(path) if forked.suits(spec) else None
    return in_process.alone(spec, path) if status is None else status


if __name__ == "__main__":
    status = main()
    if status == 0:
        # Python looks for cycles in all that torch and megatron-core have defined when it ends, for a second. After a
        # failure it may: what the error's frames hold is closed then.
        gc.freeze()
    sys.exit(status)
