"""Start the ranks of a step on this machine, one process each, and see them to their end.

They meet in a file that only this user can open, see ``megatron_ext.distributed.rendezvous``. None of them outlives
this process, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from megatron_ext.distributed.rendezvous import STORE
from pipeline.launch.signals import STOPPED, exit_status, passed_on

# What ranks have to end by themselves after another one has failed. Slurm's KillWait is as long.
GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.05
# A file system of this machine's memory: files can be locked there, and all containers of a user see the same. Neither
# holds of every folder for temporary files on a cluster.
MEMORY = "/dev/shm"
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
PREFIX = "unlearn-ranks-"
OLD = 86400.0  # seconds after which an empty meeting place is one of a launcher that was killed
# Where other launchers would have the ranks meet.
_ELSEWHERE = ("MASTER_ADDR", "MASTER_PORT", "MASTER_HOST")

Rank = subprocess.Popen[bytes]


@contextmanager
def meeting_place() -> Iterator[str]:
    """A name for the file in which ranks of this machine meet, in a new folder that only this user can enter."""
    near = MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else None
    _sweep(Path(near or tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=near, ignore_cleanup_errors=True) as folder:
        yield f"{folder}/store"


def _sweep(folder: Path) -> None:
    """Remove empty meeting places, which launchers leave that are killed; only the user's own can be removed."""
    for place in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # not empty, another user's, or gone
            if time.time() - place.stat().st_mtime > OLD:
                place.rmdir()


def run(command: Sequence[str], count: int) -> int:
    """Run ``command`` in ``count`` processes, with the variables of ranks.

    Where a rank fails, the others are told to end with SIGTERM, and 30 s later they are killed. SIGTERM is passed on to
    the ranks once.

    Args:
        command: What each rank runs.
        count: How many ranks.

    Returns:
        The exit status: that of the rank that failed first, or 143 where the ranks were told to stop.
    """
    ranks: list[Rank] = []
    common = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    with meeting_place() as store, passed_on(partial(_send, ranks)) as (received, begin):
        try:
            for number in range(count):
                own = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), STORE: store}
                ranks.append(_start(command, common | own))
            begin()
            failed = _wait(ranks)
        finally:
            _send(ranks, signal.SIGKILL)
            for rank in ranks:
                rank.wait()
    if signal.SIGTERM in received and any(rank.returncode for rank in ranks):
        return STOPPED
    if failed is not None:
        return exit_status(failed.returncode)
    return max(rank.returncode for rank in ranks)


def _start(command: Sequence[str], environment: dict[str, str]) -> Rank:
    """A rank is in a process group of its own: a terminal's ^C reaches it once, by way of this process."""
    # No other thread of this process does more than wait: what runs between fork and exec meets no lock of one.
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_ending_with(os.getpid()),
    )


def _ending_with(parent: int) -> Callable[[], None]:
    """What a new process calls to be killed when ``parent`` ends, or now where it has ended already."""

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _send(ranks: Sequence[Rank], number: int) -> None:
    """To every rank that runs, and to what it has started."""
    for rank in ranks:
        if rank.returncode is None:
            _send_group(rank, number)


def _send_group(rank: Rank, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(rank.pid, number)


def _ended(rank: Rank) -> bool:
    """Whether a rank has ended; what it has started and left behind ends with it."""
    # As long as nobody has waited for it, no other process group can get its number.
    if rank.returncode is None and os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        _send_group(rank, signal.SIGKILL)
        rank.wait()
    return rank.returncode is not None


def _wait(ranks: Sequence[Rank]) -> Rank | None:
    """Wait for every rank; the one that failed first, after which the others are ended. To stop is not to fail."""
    failed, deadline, running = None, float("inf"), True
    while running:
        running = not all([_ended(rank) for rank in ranks])  # each is asked
        if failed is None and (failed := _failed(ranks)) is not None:
            _say(ranks.index(failed), len(ranks), failed.returncode)
            _send(ranks, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            _send(ranks, signal.SIGKILL)
        if running:
            time.sleep(_POLL_SECONDS)
    return failed


def _failed(ranks: Sequence[Rank]) -> Rank | None:
    return next((rank for rank in ranks if rank.returncode not in (None, 0, STOPPED)), None)


def _say(rank: int, count: int, returncode: int) -> None:
    how = signal.strsignal(-returncode) if returncode < 0 else f"exit status {returncode}"
    print(f"rank {rank} of {count}: {how}", file=sys.stderr, flush=True)
