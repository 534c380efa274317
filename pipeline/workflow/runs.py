"""The start of a run: its lease of the results, and the end of what killed runs have left at work.

What they have left are steps on this machine and jobs in Slurm's queue. Snakemake's own lock is not used: it stays when
Snakemake is killed, and two experiments of one clone share its folder.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.launch import lease
from pipeline.launch.lease import Held, Lease

ENDING = 120.0  # seconds that what a killed run has left may take to write its state
AWAY = 300.0  # seconds that Slurm's controller may be away when a run on its nodes begins
AWAY_LOCALLY = 10.0  # the same for a run on this machine, whose results no job need ever have written
ASKED = 5.0  # seconds between two questions whether it answers again
ANSWERED = 60.0  # seconds that it may take to answer
PREFIX = "unlearn-"  # of the names of a run's jobs in Slurm


def begin(results: Path, lost: Callable[[], None], cluster: bool = False) -> Lease:
    """Take the lease of an experiment's results, and end what killed runs have left at work on them.

    Args:
        results: The experiment's folder.
        lost: Called, in another thread, where a run elsewhere took this one for dead and has taken over.
        cluster: Whether its jobs are Slurm's, so that those of a killed run must be known.

    Raises:
        Held: Another run is alive, steps of a killed one do not end or are not known, or the folder cannot be written.
    """
    try:
        held = Lease.take(results, lost)
    except OSError as error:
        raise Held(f"results: {str(results)!r} cannot be written: {error.strerror}") from None
    try:
        if held.dead is not None:
            print(f"{results}: {held.dead} was killed: going on from there", file=sys.stderr)
        if left := _ended(results, cluster):
            raise Held(f"of a killed run, these still work on {results}: {', '.join(left)}")
    except BaseException:
        held.release()
        raise
    lease.mark(results)
    return held


def job_names(results: Path) -> str:
    """What the names of a run's jobs in Slurm begin with, the same for all runs of the same results."""
    return f"{PREFIX}{hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:12]}"


def _ended(results: Path, cluster: bool) -> list[str]:
    """Wait for the steps that killed runs have left to end, and have Slurm cancel their jobs; those that remain."""
    told, jobs = False, []
    answers = shutil.which("squeue") is not None
    deadline = time.monotonic() + ENDING
    while True:
        if answers:
            listed = _slurm_jobs(job_names(results), cluster)
            answers, jobs = listed is not None, listed or []
        left = [*(f"process {pid}" for pid in lease.left_behind(results)), *(f"Slurm job {job}" for job in jobs)]
        if not left or (told and time.monotonic() > deadline):
            return left
        if not told:
            deadline = time.monotonic() + ENDING  # not before: a controller that was away may have answered late
            print(f"waiting until these have written their state: {', '.join(left)}", file=sys.stderr)
            if jobs:
                with suppress(subprocess.TimeoutExpired):
                    subprocess.run(["scancel", *jobs], timeout=ANSWERED, check=False)
            told = True
        time.sleep(1)


def _slurm_jobs(prefix: str, cluster: bool) -> list[str] | None:
    """The jobs in Slurm's queue whose names begin so; ``None``, with a line, where it does not say and need not.

    Raises:
        Held: It does not say, and these jobs must be known.
    """
    patience, said = AWAY if cluster else AWAY_LOCALLY, False
    deadline = time.monotonic() + patience
    while True:
        rows, why = _queue(max(1.0, min(ANSWERED, deadline - time.monotonic())))
        if not why:
            return [job for job, *name in rows if name and name[0].startswith(prefix)]
        if time.monotonic() + ASKED > deadline:
            what = f"Slurm does not say within {patience:.0f} s which jobs a killed run may have left ({why})"
            if cluster:
                raise Held(f"{what}. Nothing was done: start again when squeue answers")
            print(f"{what}: going on without, because this run's steps are no jobs of it", file=sys.stderr)
            return None
        if not said:
            print(f"{why}: asking again which jobs a killed run may have left", file=sys.stderr)
            said = True
        time.sleep(ASKED)


def _queue(seconds: float) -> tuple[list[list[str]], str]:
    """Number and name of each of the user's jobs in Slurm's queue; and why it is not known, empty where it is."""
    command = ["squeue", "--me", "--noheader", "--format=%i %j"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return [], f"squeue has not answered for {seconds:.0f} s"
    if listed.returncode:
        lines = listed.stderr.strip().splitlines() or [f"exit status {listed.returncode}"]
        return [], f"squeue: {lines[-1].removeprefix('squeue: ')}"
    return [line.split() for line in listed.stdout.splitlines()], ""
