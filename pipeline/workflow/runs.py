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
from pathlib import Path

from pipeline.launch import lease
from pipeline.launch.lease import Held, Lease

ENDING = 120.0  # seconds that what a killed run has left may take to write its state
PREFIX = "unlearn-"  # of the names of a run's jobs in Slurm


def begin(results: Path, lost: Callable[[], None]) -> Lease:
    """Take the lease of an experiment's results, and end what killed runs have left at work on them.

    Args:
        results: The experiment's folder.
        lost: Called, in another thread, where a run elsewhere took this one for dead and has taken over.

    Raises:
        Held: Another run is alive, steps of a killed one do not end, or the folder cannot be written.
    """
    try:
        held = Lease.take(results, lost)
    except OSError as error:
        raise Held(f"results: {str(results)!r} cannot be written: {error.strerror}") from None
    try:
        if held.dead is not None:
            print(f"{results}: {held.dead} was killed: going on from there", file=sys.stderr)
        if left := _ended(results):
            raise Held(f"of a killed run, these still work on {results}: {', '.join(left)}")
    except BaseException:
        held.release()
        raise
    lease.mark(results)
    return held


def job_names(results: Path) -> str:
    """What the names of a run's jobs in Slurm begin with, the same for all runs of the same results."""
    return f"{PREFIX}{hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:12]}"


def _ended(results: Path) -> list[str]:
    """Wait for the steps that killed runs have left to end, and have Slurm cancel their jobs; those that remain."""
    told = False
    deadline = time.monotonic() + ENDING
    while True:
        jobs = _slurm_jobs(job_names(results))
        left = [*(f"process {pid}" for pid in lease.left_behind(results)), *(f"Slurm job {job}" for job in jobs)]
        if not left or time.monotonic() > deadline:
            return left
        if not told:
            print(f"waiting until these have written their state: {', '.join(left)}", file=sys.stderr)
            if jobs:
                subprocess.run(["scancel", *jobs], check=False)
            told = True
        time.sleep(1)


def _slurm_jobs(prefix: str) -> list[str]:
    """The jobs in Slurm's queue whose names begin so; none where there is no Slurm."""
    if shutil.which("squeue") is None:
        return []
    listed = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i %j"], capture_output=True, text=True, timeout=60, check=False
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [job for job, *name in rows if name and name[0].startswith(prefix)]
