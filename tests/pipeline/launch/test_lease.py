"""One run at a time works on an experiment's results, and one that is dead keeps nobody waiting."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from pipeline.launch import lease
from pipeline.launch.environment import RUN
from pipeline.launch.lease import Held, Holder, Lease


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which stands for another run."""
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def held_by(folder: Path, process: subprocess.Popen[bytes], age: float = 0, **changes: object) -> Holder:
    """Write the lease that a run in ``process`` would have; ``age``: seconds since it was renewed."""
    started = psutil.Process(process.pid).create_time()
    holder = replace(Holder.this(), pid=process.pid, started=started, **changes)
    file = folder / lease.NAME
    file.write_text(json.dumps(asdict(holder)))
    os.utime(file, (time.time() - age,) * 2)
    return holder


def test_a_run_that_lives_is_named_and_one_that_was_killed_is_followed(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    """However long ago the lease was renewed: here the process itself is looked at."""
    holder = held_by(tmp_path, other, age=10 * lease.LOST)
    with pytest.raises(Held, match=rf"process {other.pid} on {socket.gethostname()}"):
        Lease.take(tmp_path)

    other.kill()  # and not waited for: a process that has ended and whose parent has not asked lives no more
    time.sleep(0.2)
    taken = Lease.take(tmp_path)

    assert taken.dead == holder
    taken.release()
    assert list(tmp_path.iterdir()) == []


def test_a_start_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """An empty file would be taken for the lease of a run that has just begun."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Lease.take(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    Lease.take(tmp_path).release()


def test_a_process_that_got_the_number_of_the_run_is_not_the_run(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    held_by(tmp_path, other)
    text = json.loads((tmp_path / lease.NAME).read_text())
    (tmp_path / lease.NAME).write_text(json.dumps(text | {"started": text["started"] - 100}))
    Lease.take(tmp_path).release()


def test_a_run_elsewhere_lives_as_long_as_it_renews(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    """That there is a process of that number here says nothing about one on another machine."""
    held_by(tmp_path, other, age=lease.LOST - 60, host="node7", place="another machine")
    with pytest.raises(Held, match=rf"process {other.pid} on node7.*heard of 1\d\d s ago"):
        Lease.take(tmp_path)
    dead = held_by(tmp_path, other, age=lease.LOST + 1, host="node7", place="another machine")
    taken = Lease.take(tmp_path)
    assert taken.dead == dead
    taken.release()


def test_of_many_that_follow_a_dead_run_one_goes_on(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    held_by(tmp_path, other)
    other.kill()
    other.wait()
    taken: list[Lease] = []
    refused: list[str] = []
    start = threading.Barrier(12)

    def follow() -> None:
        start.wait()
        try:
            taken.append(Lease.take(tmp_path))
        except Held as error:
            refused.append(str(error))

    threads = [threading.Thread(target=follow) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(taken), len(refused)) == (1, 11)
    taken[0].release()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_is_renewed_and_its_loss_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept is taken for dead; when it wakes, its run must not work beside its follower."""
    monkeypatch.setattr(lease, "RENEWED", 0.02)
    lost = threading.Event()
    taken = Lease.take(tmp_path, lost.set)
    file = tmp_path / lease.NAME
    os.utime(file, (0, 0))
    for _ in range(200):
        if file.stat().st_mtime > 1:
            break
        time.sleep(0.02)
    assert file.stat().st_mtime > 1 and not lost.is_set()

    file.write_text(json.dumps(asdict(Holder.this())))

    assert lost.wait(5)
    taken.release()
    assert file.exists(), "it is the follower's"


def test_a_step_that_is_written_elsewhere_is_refused_as_soon_as_it_is_heard_of(
    tmp_path: Path, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs of one step both went on from its state, and one of them died on the other's files."""
    monkeypatch.setattr(lease, "LOOKED", 0.02)
    held_by(tmp_path, other, age=30, host="n2", place="another machine", job="17")
    looks = iter(range(100))
    sleep = time.sleep

    def look(seconds: float) -> None:
        sleep(seconds)
        if next(looks) == 2:
            os.utime(tmp_path / lease.NAME)

    monkeypatch.setattr(lease.time, "sleep", look)
    with pytest.raises(Held, match=r"Slurm job 17, process \d+ on n2, .*still writes here"):
        lease.take_step(tmp_path)
    assert next(looks) == 3


def test_a_step_is_taken_over_from_a_job_that_was_killed(
    tmp_path: Path, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "LOOKED", 0.02)
    held_by(tmp_path, other, age=lease.STEP_LOST - 0.1, host="n2", place="another machine", job="17")
    taken = lease.take_step(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "waiting whether it is alive" in said[0] and "taken over from Slurm job 17" in said[1]
    taken.release()
    assert list(tmp_path.iterdir()) == []


PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(100)"
STEP = "from pipeline.launch.parent import follow; import time; follow(); print('ready', flush=True); time.sleep(100)"


def wait_for(condition: Callable[[], bool]) -> bool:
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_steps_of_a_killed_run_are_found_and_end(tmp_path: Path) -> None:
    """Only those that a run has started: one that a person starts outlives its shell."""
    environment = {name: value for name, value in os.environ.items() if name != RUN}
    runs = [
        subprocess.Popen([sys.executable, "-c", PARENT, STEP], env=environment | given, stdout=subprocess.PIPE)
        for given in ({RUN: str(tmp_path)}, {})
    ]
    by_hand: list[psutil.Process] = []
    try:
        for run in runs:
            assert run.stdout is not None and run.stdout.readline() == b"ready\n"
        by_hand = psutil.Process(runs[1].pid).children()
        assert len(lease.left_behind(tmp_path)) == 2, "the run and its step"
        for run in runs:
            run.kill()
            run.wait()
        assert wait_for(lambda: not lease.left_behind(tmp_path))
        assert by_hand[0].is_running()
    finally:
        for process in (*runs, *by_hand):
            process.send_signal(signal.SIGKILL)
