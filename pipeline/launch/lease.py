"""Who works on a folder, a run on an experiment's results or a step on its own: a file that is renewed meanwhile.

The file is made with ``O_EXCL``, which NFS honours too, and its age is told by the file server's clock alone: by the
difference to a file that is made to be compared with. On the machine of the run its process decides whether it lives;
elsewhere, whether the file was renewed.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.launch.environment import RUN

NAME = ".running.json"
RENEWED = 20.0  # seconds between two renewals
LOST = 180.0  # seconds without one, after which a run on another machine is taken for dead; more than NFS caches times
STEP_LOST = 60.0  # the same for a step, whose next attempt waits for so long
LOOKED = 2.0  # seconds between two looks at another step's lease
CLOCK = 5.0  # seconds by which the start of one process may be told differently


class Held(Exception):
    """Another run or step works on the same folder; the message says which.

    Attributes:
        age: Seconds since one elsewhere was heard of; ``None`` where the process was seen here, or nothing is known.
    """

    def __init__(self, message: str, age: float | None = None) -> None:
        super().__init__(message)
        self.age = age


@dataclass(frozen=True)
class Holder:
    """A run of an experiment, or a step.

    Attributes:
        host: The machine's name.
        place: Which machine since its last start, and which space of process numbers on it.
        pid: The process.
        started: When it was started, in seconds since 1970.
        token: A name that no other has.
        job: The number of its Slurm job, if it is one.
    """

    host: str
    place: str
    pid: int
    started: float
    token: str
    job: str | None = None

    @classmethod
    def this(cls) -> Holder:
        """The process that asks."""
        me = psutil.Process()
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        token, job = secrets.token_hex(6), os.environ.get("SLURM_JOB_ID")
        return cls(host, _place(), me.pid, me.create_time(), token, job)

    def process_lives(self) -> bool:
        """Whether the process is there; right only on the machine that it runs on."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < CLOCK
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"{f'Slurm job {self.job}, ' if self.job else ''}process {self.pid} on {self.host}, started {since}"


class Lease:
    """The right to work on a folder of results, renewed by a thread until it is given back."""

    def __init__(self, file: Path, holder: Holder, dead: Holder | None, lost: Callable[[], None]):
        """Begin to renew a lease that has been taken; ``take`` does that.

        Args:
            file: The lease's file, which names ``holder``.
            holder: This run.
            dead: The run that had it before and ended without giving it back.
            lost: Called where another run has taken the file over.
        """
        self.file, self.holder, self.dead = file, holder, dead
        self._lost, self._ended = lost, threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, folder: Path, lost: Callable[[], None] = lambda: None, dead_after: float = LOST) -> Lease:
        """Take the lease of a folder, also from a run or step that is dead.

        Args:
            folder: The experiment's results, or a step's.
            lost: Called, in another thread, where a run elsewhere took this one for dead and has taken over.
            dead_after: Seconds after which one that is not heard of is taken for dead.

        Raises:
            Held: Another run is alive.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file, holder, dead = folder / NAME, Holder.this(), None
        while not _create(file, json.dumps(asdict(holder)) + "\n"):
            other, age = _read(file)
            if age is None:
                continue  # given back meanwhile
            here = other is not None and other.place == _place()
            if other is None and age < dead_after:
                what = "another has just begun, or the file is damaged; delete it if there is none"
                raise Held(f"{file}: {what}", age)
            if other is not None and (other.process_lives() if here else age < dead_after):
                heard = f"; it was heard of {age:.0f} s ago, and is taken for dead after {dead_after:.0f} s"
                raise Held(f"{folder}: another run is alive: {other}{'' if here else heard}", None if here else age)
            _remove_dead(file, other)
            dead = other
        return cls(file, holder, dead, lost)

    def release(self) -> None:
        """Give the lease back; on a disk that fails it stays, and is found to be a dead process's."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            if _holder(self.file) == self.holder:
                self.file.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            try:
                if _holder(self.file) != self.holder:
                    self._lost()
                    return
                os.utime(self.file)
            except OSError:
                continue  # a file server that is away for a moment


def take_step(output: Path) -> Lease:
    """Take the lease of a step's folder, so that two jobs never write the same step.

    Where the other one runs elsewhere, wait until it is heard of, or taken for dead.

    Raises:
        Held: Another job or process writes there.
    """
    lost, before, said = (lambda: os.kill(os.getpid(), signal.SIGTERM)), math.inf, False
    while True:
        try:
            taken = Lease.take(output, lost, STEP_LOST)
        except Held as error:
            if error.age is None or error.age < before < math.inf:
                raise Held(f"{error}. Nothing was done: it still writes here. Wait for its end, or end it") from None
            if not said:
                print(f"{error}: waiting whether it is alive", flush=True)
            before, said = error.age, True
            time.sleep(LOOKED)
            continue
        if taken.dead is not None:
            print(f"{output}: taken over from {taken.dead}, which has ended without a word", flush=True)
        return taken


def mark(results: Path) -> None:
    """Let everything that this process starts from now on be known as work on an experiment's results."""
    os.environ[RUN] = str(results.resolve())


def left_behind(results: Path) -> list[int]:
    """The processes on this machine that earlier runs of an experiment's results have started, and that still work."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN) == str(results.resolve()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue  # another user's, or gone
    return found


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _create(file: Path, text: str) -> bool:
    """Make a file that must not be there yet; whether that was so. Where it cannot be written, it is gone again: an
    empty one would keep out every run that follows."""
    try:
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(opened, "w", encoding="utf-8") as stream:
            stream.write(text)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return True


def _read(file: Path) -> tuple[Holder | None, float | None]:
    """Who holds a lease, and its age in seconds; ``None`` for what cannot be told, both where there is no file."""
    try:
        with file.open(encoding="utf-8") as stream:  # opening makes NFS look at the server's times
            text, renewed = stream.read(), os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None, None
    age = _server_time(file) - renewed
    try:
        return Holder(**json.loads(text)), age
    except (ValueError, TypeError):
        return None, age


def _holder(file: Path) -> Holder | None:
    """Who holds a lease, without its age, for which a file would have to be made."""
    try:
        return Holder(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _server_time(file: Path) -> float:
    probe = file.with_name(f"{NAME}.{secrets.token_hex(6)}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _remove_dead(file: Path, dead: Holder | None) -> None:
    """Remove a dead run's lease, unless another run has taken it over meanwhile."""
    guard = file.with_name(f"{NAME}.taken-over")
    if not _create(guard, ""):
        try:
            if _server_time(file) - guard.stat().st_mtime > LOST:
                guard.unlink(missing_ok=True)  # of a run that was killed in the lines below
        except FileNotFoundError:
            pass
        time.sleep(0.1)
        return
    try:
        holder, age = _read(file)
        if age is not None and holder == dead:
            file.unlink()
    finally:
        guard.unlink(missing_ok=True)
