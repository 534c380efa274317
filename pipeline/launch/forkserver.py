"""The process that steps are forked from: ``python -m pipeline.launch.forkserver SOCKET``, which a run starts.

It loads what steps load, forks a copy of itself for each launcher that asks (``pipeline.launch.forked``), passes the
launcher's signals on to the copy, and tells the launcher how it ended. A copy whose launcher is gone is killed. It
refuses where source files have changed since it loaded them, and where it has threads, which a copy would lack.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from pipeline.launch import environment, in_process
from pipeline.launch.forked import LENGTH, STARTED, STATUS, same_user
from pipeline.launch.specification import specification
from pipeline.steps.programs import PACKAGES, ROOT

PATIENCE = 10.0  # seconds for a launcher to say the rest of what it wants
# What steps import, also when they run, and what starts no thread: ``nltk`` would, by way of pandas.
LOADED = (
    "megatron_ext.steps.train",
    "megatron_ext.steps.unlearn",
    "megatron_ext.training.unlearning",
    "pipeline.steps.evaluate",
    "pipeline.benchmarks.megatron_lm",
    "scipy.stats",
)
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

Sources = frozenset[tuple[str, int, int]]


@dataclass(frozen=True)
class Request:
    """A step: its specification's ``path``, and the launcher's working ``folder``, ``environment`` and ``streams``,
    which are standard input, output and error."""

    path: Path
    folder: str
    environment: dict[str, str]
    streams: list[int]


class Server:
    """Forks steps for launchers, until its standard input ends and after it the last step."""

    def __init__(self, listener: socket.socket, loaded: Sources):
        """``loaded``: ``sources()`` of before this process has loaded them."""
        self._listener, self._loaded, self._pid = listener, loaded, os.getpid()
        self._asking: set[socket.socket] = set()  # launchers that have not said yet what they want
        self._launchers: dict[int, socket.socket] = {}  # by the processes of their steps
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()

    def serve(self) -> Request | None:
        """Returns in each copy, what is to be done there, and in the server at its end: ``None``."""
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Steps that are told to stop write their state first. They could not if this process ended meanwhile.
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        for source in (sys.stdin, self._listener, self._woken):
            self._selector.register(source, selectors.EVENT_READ)
        listening = True
        while listening or self._launchers:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    listening = False
                    self._selector.unregister(sys.stdin)
                    self._selector.unregister(self._listener)
                    self._listener.close()
                elif key.fileobj is self._woken:
                    self._woken.recv(4096)
                elif key.fileobj is self._listener:
                    if listening:
                        self._accept()
                elif not isinstance(key.data, socket.socket):
                    self._pass_on(key.data)
                elif (request := self._answer(key.data)) is not None:
                    return request
            self._reap()
        return None

    def _accept(self) -> None:
        """Wait for what a launcher says beside everything else: one that is stopped keeps nobody."""
        connection, _ = self._listener.accept()
        self._asking.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, connection)

    def _answer(self, connection: socket.socket) -> Request | None:
        """Fork what a launcher asks for, or hang up, which refuses it; in the copy alone, what that is."""
        self._asking.remove(connection)
        self._selector.unregister(connection)
        connection.settimeout(PATIENCE)
        request = _read(connection) if same_user(connection) else None
        if request is None or sources() != self._loaded or threads() > 1 or (pid := self._fork()) is None:
            connection.close()
        elif pid == 0:
            connection.close()
            return request
        else:
            with suppress(OSError):  # so does the copy: which is first is not known
                os.setpgid(pid, pid)
            self._launchers[pid] = connection
            self._selector.register(connection, selectors.EVENT_READ, pid)
            _tell(connection, f"{STARTED} {pid} {self._pid}")
        for stream in () if request is None else request.streams:
            os.close(stream)
        return None

    def _fork(self) -> int | None:
        """The number of a new copy, and in the copy 0; ``None`` where this machine has no process or memory for it."""
        # A signal that comes before the copy has stopped to ignore it waits until then. It would be lost otherwise.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
        try:
            pid: int | None = os.fork()
        except OSError:  # which ends no step that runs, as it would if this process ended
            pid = None
        if pid == 0:
            self._leave()
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return pid

    def _leave(self) -> None:
        """Be a process of one's own, which ends with the server."""
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != self._pid:
            os._exit(1)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in _IGNORED:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._selector.close()
        for other in (self._listener, self._woken, self._wake, *self._asking, *self._launchers.values()):
            other.close()

    def _pass_on(self, pid: int) -> None:
        """Give the step the signals that its launcher has got; where the launcher is gone, end it."""
        try:
            numbers = self._launchers[pid].recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self._selector.unregister(self._launchers[pid])
            os.killpg(pid, signal.SIGKILL)
        for number in numbers:
            os.kill(pid, number)  # nobody has waited for it: no other process has its number

    def _reap(self) -> None:
        """Tell launchers of steps that have ended; what a step has started and left behind ends with it."""
        for pid in [*self._launchers]:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            connection = self._launchers.pop(pid)
            with suppress(KeyError):  # its launcher is gone
                self._selector.unregister(connection)
            _tell(connection, f"{STATUS} {os.waitstatus_to_exitcode(status)}")
            connection.close()


def sources() -> Sources:
    """Every source file of this project, with the time of its last change and its size."""
    found = []
    for file in (file for package in PACKAGES for file in ROOT.joinpath(package).rglob("*.py")):
        with suppress(OSError):  # removed meanwhile, or an editor's lock: a link to what is no file
            stat = file.stat()
            found.append((str(file), stat.st_mtime_ns, stat.st_size))
    return frozenset(found)


def threads() -> int:
    """How many threads this process has, those of libraries too."""
    return len(os.listdir("/proc/self/task"))


def load() -> None:
    """Import what steps do, with the settings that libraries read then."""
    environment.set_numerical(1)
    environment.stay_offline()
    # Libraries remark on what a CPU lacks; a step's log takes that, and this process has the terminal of its run.
    shown: Any = warnings
    show, shown.showwarning = shown.showwarning, lambda *_, **__: None
    for name in LOADED:
        importlib.import_module(name)
    from megatron_ext.distributed import cpu

    cpu.install()
    shown.showwarning = show
    gc.collect()
    gc.freeze()  # the collector of a copy would write into what it shares with this process


def main(argv: Sequence[str]) -> int:
    """Serve on the socket of the given number; in a copy, run a step. The exit status is the step's."""
    before = sources()
    # A run that fails at once does not keep whoever waits for all that it has started, the next run for one.
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    load()
    _LIBC.prctl(_PR_SET_PDEATHSIG, 0)  # from now on a step may have to write its state first
    request = Server(socket.socket(fileno=int(argv[0])), before).serve()
    if request is None:
        os._exit(0)  # nothing is to be closed, and to look through all that is loaded would take Python a second
    return _step(request)


def _step(request: Request) -> int:
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    if isinstance(sys.stdout, TextIOWrapper):  # lines in the order in which they were written, also after a kill
        sys.stdout.reconfigure(line_buffering=True)
    return in_process.alone(specification(request.path), request.path)


def _read(connection: socket.socket) -> Request | None:
    """What a launcher asks for; ``None`` where it is gone."""
    streams: list[int] = []
    try:
        length, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
        with connection.makefile("rb") as told:
            asked = json.loads(told.read(*LENGTH.unpack(length)))
        if len(streams) != 3:
            raise ValueError("streams were lost: this process may have no more files open")
        return Request(Path(asked["path"]), asked["folder"], asked["environment"], streams)
    except (OSError, ValueError, struct.error):
        for stream in streams:
            os.close(stream)
        return None


def _tell(connection: socket.socket, line: str) -> None:
    with suppress(OSError):  # the launcher is gone
        connection.sendall(line.encode() + b"\n")


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if status == 0:
        gc.freeze()  # as in the launcher
    sys.exit(status)
