"""Ranks of this machine: where they meet, how they end, and that none is left."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.launch import local_ranks
from tests.support.saying import SAYING

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
LAUNCHER = """
import os, sys
from pipeline.launch import local_ranks
from tests.support.saying import SAYING
local_ranks.GRACE_SECONDS = 0.5
local_ranks.MEMORY = os.environ["TMPDIR"]
sys.exit(local_ranks.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], 2))
"""
RANK = """
import os, sys
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
"""
STARTED = "\ncame(f'pid-{rank}', str(os.getpid()))\n"

Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts two ranks of a program that says, by files in ``tmp_path``, what becomes of it."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "tmp").mkdir()

    def begin(program: str, **more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LAUNCHER, RANK + SAYING + program, str(tmp_path)]
        environment = {"PATH": os.defpath, "TMPDIR": str(tmp_path / "tmp"), **more}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, errors = process.communicate(timeout=25)
    return process.returncode, errors.splitlines()


def files(folder: Path, *names: str) -> list[str]:
    deadline = time.monotonic() + 20
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < deadline, f"of {names} there are {sorted(path.name for path in folder.iterdir())}"
        time.sleep(0.01)
    return [(folder / name).read_text() for name in names]


def gone(pids: list[str]) -> bool:
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(int(pid)) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(psutil.pid_exists(int(pid)) for pid in pids)


def test_ranks_meet_where_no_other_user_can_enter(launch: Launch, tmp_path: Path) -> None:
    """Whatever the umask and the caller's own variables are."""
    told = "\ncame(f'told-{rank}', '\\n'.join(f'{k}={v}' for k, v in os.environ.items()))" + STARTED + "wait()"
    process = launch(told, MASTER_ADDR="10.0.0.1", MASTER_PORT="1", MASTER_HOST="n17", UNLEARN_STORE="/tmp/planted")
    files(tmp_path, "pid-0", "pid-1")
    told_0, told_1 = (
        dict(line.split("=", 1) for line in text.splitlines()) for text in files(tmp_path, "told-0", "told-1")
    )
    store = Path(told_0["UNLEARN_STORE"])
    assert store == Path(told_1["UNLEARN_STORE"]) and store.parent.parent == tmp_path / "tmp"
    found = store.parent.lstat()
    assert stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.geteuid()
    for rank, seen in enumerate((told_0, told_1)):
        assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == (str(rank), str(rank), "2")
        assert not {"MASTER_ADDR", "MASTER_PORT", "MASTER_HOST"} & seen.keys()
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    assert len(family) == 3 and not [each for one in family for each in one.net_connections("inet")]
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143
    assert not list((tmp_path / "tmp").iterdir())


def test_ranks_meet_in_memory_or_beside_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files may be shared by many machines, without locks."""
    monkeypatch.setattr(local_ranks.tempfile, "tempdir", str(tmp_path))
    for memory, expected in ((str(tmp_path / "memory"), tmp_path / "memory"), (str(tmp_path / "none"), tmp_path)):
        (tmp_path / "memory").mkdir(exist_ok=True)
        monkeypatch.setattr(local_ranks, "MEMORY", memory)
        with local_ranks.meeting_place() as store:
            assert Path(store).parent.parent == expected
            assert stat.S_IMODE(Path(store).parent.stat().st_mode) == 0o700
        assert not Path(store).parent.exists()


def test_a_launcher_that_is_killed_leaves_no_rank(launch: Launch, tmp_path: Path) -> None:
    """Ranks that would ignore every request to end."""
    process = launch(
        "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)" + STARTED + "wait()"
    )
    pids = files(tmp_path, "pid-0", "pid-1")
    process.kill()
    assert gone(pids)


def test_a_rank_that_does_not_end_by_itself_is_killed(launch: Launch, tmp_path: Path) -> None:
    ignores = "signal.signal(signal.SIGTERM, lambda *_: came(f'told-{rank}'))" + STARTED
    process = launch(ignores + "if rank == 1: wait('pid-0'), os._exit(7)\nwait()")
    status, said = end(process)
    assert (status, said) == (7, ["rank 1 of 2: exit status 7"])
    assert gone(files(tmp_path, "pid-0", "told-0")[:1])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_every_rank_once(launch: Launch, tmp_path: Path, number: signal.Signals, status: int) -> None:
    """A terminal's signal goes to the whole process group of the launcher, and ranks are not in it."""
    counts = f"seen = []\nsignal.signal({number:d}, lambda *_: seen.append(1))" + STARTED
    process = launch(
        counts + "while not seen: time.sleep(0.01)\ntime.sleep(0.3)\n"
        f"came(f'seen-{{rank}}', str(len(seen)))\nwait('seen-0', 'seen-1')\nsys.exit({status})"
    )
    pids = files(tmp_path, "pid-0", "pid-1")
    assert all(os.getpgid(int(pid)) not in (os.getpgid(process.pid), os.getpgid(0)) for pid in pids)
    for _ in range(2 if number == signal.SIGTERM else 1):
        process.send_signal(number)
    assert end(process)[0] == status
    assert files(tmp_path, "seen-0", "seen-1") == ["1", "1"]


def test_a_rank_that_stops_in_order_does_not_end_the_others(launch: Launch, tmp_path: Path) -> None:
    """Each writes its own state, and one may be ready long before another; Slurm asks them without the launcher."""
    process = launch(STARTED + "if rank == 1: time.sleep(1.5); came('written')\nsys.exit(143)")
    assert end(process) == (143, [])
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("sys.exit(0)", 0, []),
        ("if rank == 1: os.kill(os.getpid(), signal.SIGSEGV)\nwait()", 139, ["rank 1 of 2: Segmentation fault"]),
        ("sys.exit(3 if rank == 0 else 0)", 3, ["rank 0 of 2: exit status 3"]),
    ],
)
def test_the_exit_status_is_that_of_the_rank_that_failed_first(
    launch: Launch, program: str, status: int, said: list[str]
) -> None:
    assert end(launch(program)) == (status, said)


def test_what_a_rank_started_ends_with_it(launch: Launch, tmp_path: Path) -> None:
    child = "import subprocess\nchild = subprocess.Popen(['sleep', '30'])\ncame(f'child-{rank}', str(child.pid))"
    process = launch(child + STARTED + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwait()")
    files(tmp_path, "pid-0", "pid-1")
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
    assert end(process)[0] == 137
    assert gone(files(tmp_path, "child-0", "child-1"))


def test_what_killed_launchers_leave_is_swept_and_what_is_used_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ranks, "MEMORY", str(tmp_path))
    for name in ("unlearn-ranks-old", "unlearn-ranks-used", "unlearn-ranks-new", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "unlearn-ranks-used" / "store").touch()
    for name in ("unlearn-ranks-old", "unlearn-ranks-used", "other"):
        os.utime(tmp_path / name, (0, 0))
    with local_ranks.meeting_place() as store:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            ["unlearn-ranks-used", "unlearn-ranks-new", "other", Path(store).parent.name]
        )
