"""Steps that are forked from a process with their libraries loaded: they run as launched ones do, and none is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from megatron_ext.specs import ReferenceSpec
from pipeline.launch import forked, forkserver
from pipeline.specs import FetchSpec
from tests.support.saying import SAYING

ROOT = Path(__file__).parents[3]
# The server with nothing to load, whose steps are Python programs, and whose source files are one. Files say that there
# is no process for a copy, and that a copy is slow to begin, or the server itself.
SERVER = """
import os, sys, time
from pathlib import Path
from pipeline.launch import forkserver

def run(spec, path):
    names = {"folder": path.parent}
    exec(path.read_text(), names)
    return names.get("status", 0)

fork = os.fork
def slow_fork():
    if Path("full").exists():
        raise BlockingIOError("Resource temporarily unavailable")
    pid = fork()
    while pid == 0 and Path("slow").exists():
        time.sleep(0.01)
    return pid

os.fork = slow_fork
def load():
    while Path("loading").exists():
        Path("begun").touch()
        time.sleep(0.01)

forkserver.load = load
forkserver.sources = lambda: Path("sources").read_text()
forkserver.specification = lambda path: None
forkserver.in_process.alone = run
sys.exit(forkserver.main(sys.argv[1:]))
"""
LAUNCHER = """
import sys
from pathlib import Path
from pipeline.launch import forked
status = forked.run(Path(sys.argv[1]))
print("no step was started" if status is None else f"exit status {status}")
sys.exit(status)
"""
# A run, until it is told to end.
RUN = """
import subprocess, sys
number = int(sys.argv[-1])
server = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdin=subprocess.PIPE, stdout=2, pass_fds=[number])
print(server.pid, flush=True)
input()
"""


class Server:
    """The process that steps are forked from, and what launches them."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, f"test-{os.getpid()}-{folder.name}"
        (folder / "sources").write_text("one")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(forked.address(self.name))
            listener.listen()
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OF_THE_SERVER": "1"},
                text=True,
            )
        self.launchers: list[subprocess.Popen[str]] = []

    def launch(self, program: str, **environment: str) -> subprocess.Popen[str]:
        """Start a step whose program this is; its standard input is closed."""
        path = self.folder / f"step-{len(self.launchers)}.py"
        path.write_text(f'{SAYING}\ncame("pid", str(os.getpid()))\n{program}')
        own = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), forked.SERVER: self.name, **environment}
        command = [sys.executable, "-c", LAUNCHER, str(path)]
        pipe = subprocess.PIPE
        self.launchers.append(
            subprocess.Popen(command, cwd=self.folder, env=own, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
        )
        return self.launchers[-1]

    def heard(self, name: str) -> str:
        """What a step has said under a name."""
        deadline = time.monotonic() + 60
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, sorted(path.name for path in self.folder.iterdir())
            time.sleep(0.01)
        return (self.folder / name).read_text()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    for process in (*started.launchers, started.process):
        process.kill()
        process.wait()


def end(process: subprocess.Popen[str]) -> tuple[int, list[str], list[str]]:
    """Exit status, and the lines of both streams; without the one that names processes."""
    out, err = process.communicate(timeout=90)
    return process.returncode, [line for line in out.splitlines() if "forked from" not in line], err.splitlines()


def gone(pid: str) -> bool:
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not psutil.pid_exists(int(pid))


def test_which_steps_can_be_forked(tmp_path: Path) -> None:
    def reference(**runtime: object) -> ReferenceSpec:
        return ReferenceSpec.model_validate(
            {"checkpoint": str(tmp_path), "data": str(tmp_path), "output": str(tmp_path), "runtime": runtime}
        )

    assert forked.suits(reference(device="cpu", threads=1))
    assert not forked.suits(reference(device="cpu", threads=2))
    assert not forked.suits(reference(device="cuda", threads=1))
    assert not forked.suits(reference(device="cpu", threads=1, layout={"tensor": 2}))
    assert not forked.suits(FetchSpec(hub="a/b", output=tmp_path))


def test_without_a_server_no_step_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(forked.SERVER, raising=False)
    assert forked.run(tmp_path) is None
    monkeypatch.setenv(forked.SERVER, "which nobody has")
    assert forked.run(tmp_path) is None


def test_a_step_that_has_been_started_is_not_run_by_its_launcher_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the launcher cannot say so: an error of its output is no refusal."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(forked.address(f"test-{tmp_path}"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            for stream in socket.recv_fds(connection, forked.LENGTH.size, 3)[1]:
                os.close(stream)
            connection.sendall(b"started 1 2\n")
            connection.recv(1)

        threading.Thread(target=answer, daemon=True).start()
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setenv(forked.SERVER, f"test-{tmp_path}")
        monkeypatch.setattr("sys.stdout", os.fdopen(writer, "w", buffering=1))
        with pytest.raises(BrokenPipeError):
            forked.run(tmp_path)


def test_source_files_that_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor's lock is a link to no file, and what is listed may be gone a moment later."""
    monkeypatch.setattr(forkserver, "ROOT", tmp_path)
    monkeypatch.setattr(forkserver, "PACKAGES", ("package",))
    module = tmp_path / "package" / "module.py"
    module.parent.mkdir()
    module.write_text("one = 1\n")
    before = forkserver.sources()
    assert [Path(name).name for name, *_ in before] == ["module.py"]
    (module.parent / ".#module.py").symlink_to("somebody@somewhere.1")
    assert forkserver.sources() == before
    module.unlink()
    assert forkserver.sources() != before


def test_remarks_of_libraries_do_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "a_library_that_remarks.py").write_text("import warnings\nwarnings.warn('Apex is not installed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(forkserver, "LOADED", ("a_library_that_remarks",))
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    distributed = ModuleType("megatron_ext.distributed")
    monkeypatch.setattr(distributed, "cpu", SimpleNamespace(install=lambda: None), raising=False)
    monkeypatch.setitem(sys.modules, "megatron_ext.distributed", distributed)
    forkserver.load()
    assert not recwarn.list
    warnings.warn("of a step", stacklevel=1)
    assert [str(warning.message) for warning in recwarn.list] == ["of a step"]


@pytest.mark.slow
def test_a_step_runs_as_in_its_launcher(server: Server) -> None:
    """Its environment, folder, streams and exit status; and one after the other, from the same server."""
    program = """
print(os.getcwd(), sorted(name for name in os.environ if name.startswith("OF_")), os.environ["OF_ME"])
print(sys.stdin.read(), file=sys.stderr)
print(os.getpgid(0) == os.getpid(), {signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGCHLD)} == {signal.SIG_DFL})
status = 7
"""
    for _ in range(2):
        step = server.launch(program, OF_ME="mine")
        assert step.stdin is not None
        step.stdin.write("told")
        status, out, err = end(step)
        assert status == 7
        assert out == [f"{server.folder} ['OF_ME'] mine", "True True", "exit status 7"]
        assert err == ["told"]


@pytest.mark.slow
def test_an_error_and_a_signal_are_told(server: Server) -> None:
    status, out, err = end(server.launch("raise ValueError('of the program')"))
    assert (status, out) == (1, ["exit status 1"]) and err[-1] == "ValueError: of the program"
    assert end(server.launch("sys.exit(3)"))[0] == 3
    status, out, err = end(server.launch("os.kill(os.getpid(), signal.SIGKILL)"))
    assert (status, out, err) == (137, ["exit status 137"], ["the step's process: Killed"])


@pytest.mark.slow
def test_a_step_that_is_told_to_stop_is_waited_for(server: Server) -> None:
    """SIGTERM reaches it once, and its launcher ends after it."""
    step = server.launch(
        "signal.signal(signal.SIGTERM, lambda *_: came('stop'))\ncame('ready')\nwait('stop', 'go')\nstatus = 143"
    )
    server.heard("ready")
    step.send_signal(signal.SIGTERM)
    server.heard("stop")
    assert step.poll() is None
    (server.folder / "go").touch()
    assert end(step)[:2] == (143, ["exit status 143"])


@pytest.mark.slow
def test_a_step_ends_with_its_launcher(server: Server) -> None:
    """And with it what it has started."""
    step = server.launch("pid = os.fork()\nif pid == 0: time.sleep(60)\ncame('child', str(pid))\ntime.sleep(60)")
    child = server.heard("child")
    step.kill()
    assert gone(server.heard("pid")) and gone(child)
    assert end(server.launch("status = 4"))[0] == 4  # the server goes on


@pytest.mark.slow
def test_a_step_ends_with_the_server_and_its_launcher_says_so(server: Server) -> None:
    step = server.launch("came('ready')\ntime.sleep(60)")
    server.heard("ready")
    server.process.kill()
    status, _, err = end(step)
    assert status == 137
    assert err == ["the process that the step was forked from was killed, and the step with it"]
    assert gone(server.heard("pid"))
    assert end(server.launch("status = 4"))[:2] == (0, ["no step was started"])


@pytest.mark.slow
def test_what_has_changed_since_it_was_loaded_is_not_run(server: Server) -> None:
    assert end(server.launch("status = 4"))[0] == 4
    (server.folder / "sources").write_text("two")
    assert end(server.launch("status = 4"))[:2] == (0, ["no step was started"])


@pytest.mark.slow
def test_the_server_ends_with_its_run_after_the_last_step(server: Server) -> None:
    """Told to stop with all others of a machine that is shut down, too: a step writes its state."""
    step = server.launch("came('ready')\nwait('go')\nstatus = 5")
    server.heard("ready")
    assert server.process.stdin is not None
    server.process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        server.process.send_signal(number)
    deadline = time.monotonic() + 60
    while (asked := end(server.launch("status = 4"))[0]) and time.monotonic() < deadline:
        pass  # until it has seen the end of its input
    assert asked == 0 and server.process.poll() is None
    (server.folder / "go").touch()
    assert end(step)[0] == 5
    assert server.process.wait(timeout=60) == 0


@pytest.mark.slow
def test_where_no_process_can_be_made_no_step_is_started_and_none_that_runs_ends(server: Server) -> None:
    step = server.launch("came('ready')\nwait('go')\nstatus = 5")
    server.heard("ready")
    (server.folder / "full").touch()
    assert end(server.launch("status = 4"))[:2] == (0, ["no step was started"])
    (server.folder / "go").touch()
    assert end(step)[0] == 5


@pytest.mark.slow
def test_a_request_to_stop_that_comes_before_a_copy_has_begun_is_not_lost(server: Server) -> None:
    (server.folder / "slow").touch()
    (server.folder / "step.py").write_text("status = 4")
    request = {"path": str(server.folder / "step.py"), "folder": str(server.folder), "environment": dict(os.environ)}
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as launcher:
        launcher.connect(forked.address(server.name))
        socket.send_fds(launcher, [forked.LENGTH.pack(len(text))], [0, 1, 2])
        launcher.sendall(text)
        answers = launcher.makefile()
        _, pid, _ = answers.readline().split()
        launcher.sendall(bytes([signal.SIGTERM]))
        pending, deadline = "0", time.monotonic() + 5
        while not int(pending, 16) and time.monotonic() < deadline:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            pending = next(line.split()[1] for line in lines if line.startswith("ShdPnd"))
        (server.folder / "slow").unlink()
        assert answers.readline() == f"status {-signal.SIGTERM}\n"


@pytest.mark.slow
def test_a_launcher_that_is_stopped_before_it_asks_keeps_no_other(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.connect(forked.address(server.name))
        much = {f"OF_{number}": "x" * 100000 for number in range(4)}  # more than a socket takes at once
        assert end(server.launch("status = 4", **much))[0] == 4
        stopped.setblocking(False)
        with pytest.raises(BlockingIOError):
            stopped.recv(1)  # nor is it refused


@pytest.mark.slow
def test_a_server_that_has_not_loaded_yet_ends_with_its_run(tmp_path: Path) -> None:
    (tmp_path / "sources").write_text("one")
    (tmp_path / "loading").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        number = listener.fileno()
        run = subprocess.Popen(
            [sys.executable, "-c", RUN, SERVER, str(number)],
            pass_fds=[number],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        assert run.stdout is not None
        pid = run.stdout.readline().strip()
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert psutil.pid_exists(int(pid))
        run.communicate("the end of the run\n")
    try:
        assert gone(pid)
    finally:
        (tmp_path / "loading").unlink()
