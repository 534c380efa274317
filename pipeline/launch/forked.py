"""Steps of one rank and one thread on this machine's CPUs, forked from a process that has loaded what all of them load.

torch and megatron-core take seconds to load, many steps take not much longer, and one run has dozens. A step stays a
job and a process of its own: its launcher asks the server (``pipeline.launch.forkserver``) for a copy of itself, which
runs the step with the launcher's environment, folder and streams, passes signals on to it, and waits for its end.
Where there is no server, or it refuses, the launcher runs the step itself.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from megatron_ext.specs import ModelStepSpec, StepSpec
from pipeline.launch.environment import without_secrets
from pipeline.launch.signals import STOPPED, exit_status, passed_on
from pipeline.steps.programs import ROOT

# The server's name among this machine's sockets, in the environment of what a run starts.
SERVER = "UNLEARN_FORKSERVER"
LENGTH = struct.Struct("!I")  # of what a launcher asks for, in bytes; it comes first, and with it the streams
STARTED, STATUS = "started", "status"  # what the server answers begins with one of these, or it refuses


def suits(spec: StepSpec) -> bool:
    """Whether a copy of the server may run a step. More threads are started when a library is loaded, and no copy has
    them; and what is loaded may have begun to use a GPU."""
    return isinstance(spec, ModelStepSpec) and spec.runtime.device == "cpu" and spec.ranks == spec.threads == 1


def start_server() -> None:
    """Let steps that this process starts from now on be forked. The server loads its libraries meanwhile, and ends
    with this process, or after the last step that it has forked."""
    name = secrets.token_hex(16)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address(name))
        listener.listen(socket.SOMAXCONN)
        number = listener.fileno()
        # In a session of its own: a terminal's ^C is the launchers' to pass on. Its input ends when this process does.
        command = [sys.executable, "-m", "pipeline.launch.forkserver", str(number)]
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=[number],
            start_new_session=True,
            cwd=ROOT,
            env=without_secrets(),
        )
    os.environ[SERVER] = name
    if server.stdin is not None:
        atexit.register(server.stdin.close)


def address(name: str) -> str:
    """Where the server listens: no file, so that nothing is left of one that is killed."""
    return f"\0unlearn-forkserver-{name}"


def same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end is this user's."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user == os.geteuid()


def run(path: Path) -> int | None:
    """Run the step of ``path``, whose environment is set, in a copy of the server.

    Returns:
        The step's exit status; ``None`` where no step was started, because there is no server or it refuses.
    """
    name = os.environ.pop(SERVER, None)
    if name is None:
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    with socket.socket(socket.AF_UNIX) as server, server.makefile(encoding="ascii") as answers:
        said: list[str] = []
        with suppress(OSError):
            _ask(server, name, path)
            said = answers.readline().split()
        if said[:1] != [STARTED]:
            return None
        # From here on no error may look like a refusal: the launcher would run the step beside the copy that does.
        print(f"process {said[1]}, forked from {said[2]}", flush=True)
        return _followed(server, answers)


def _ask(server: socket.socket, name: str, path: Path) -> None:
    server.connect(address(name))
    if not same_user(server):
        raise PermissionError("another user's process listens there")
    request = {"path": str(path), "folder": str(Path.cwd()), "environment": dict(os.environ)}
    text = json.dumps(request).encode()
    whole = LENGTH.pack(len(text)) + text
    sent = socket.send_fds(server, [whole], [0, 1, 2])  # all of it, unless there is more than a socket takes at once
    if sent < len(whole):  # to send nothing is an error too, where the step has ended already
        server.sendall(whole[sent:])


def _followed(server: socket.socket, answers: TextIO) -> int:
    """Pass signals on to a step that has been started, until it ends; its exit status."""

    def send(number: int) -> None:
        with suppress(OSError):  # it has just ended
            server.sendall(bytes([number]))

    with passed_on(send) as (received, begin):
        begin()
        try:
            words = answers.readline().split()
        except ConnectionError:
            words = []
    if not words:
        print("the process that the step was forked from was killed, and the step with it", file=sys.stderr)
        return 128 + signal.SIGKILL
    status = int(words[1])
    if status < 0:
        print(f"the step's process: {signal.strsignal(-status)}", file=sys.stderr)
    return STOPPED if status and signal.SIGTERM in received else exit_status(status)
