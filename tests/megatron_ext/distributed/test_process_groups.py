"""The device that a rank takes, and requests to stop."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ext.config import Layout, Runtime
from megatron_ext.distributed import cpu, process_groups
from megatron_ext.training import loop
from tests.support.distributed import environments, start


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


def give(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("local", "visible", "on_node", "expected"),
    [("0", 8, "8", 0), ("5", 8, None, 5), ("0", 1, "4", 0), ("3", 1, "4", 0)],
)
def test_a_rank_takes_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, local: str, visible: int, on_node: str | None, expected: int
) -> None:
    show(monkeypatch, local, visible, on_node)
    assert process_groups._device("cuda") == torch.device("cuda", expected)


def test_the_collector_rests_while_modules_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is what it was afterwards."""
    seen = []
    monkeypatch.setattr(cpu, "install", lambda: seen.append(gc.isenabled()))
    with process_groups.start(Runtime(device="cpu")):
        seen.append(gc.isenabled())
    gc.disable()
    try:
        with process_groups.start(Runtime(device="cpu")):
            seen.append(gc.isenabled())
    finally:
        gc.enable()
    assert seen == [False, True, False, False]


@pytest.mark.parametrize("on_node", [None, "1"])
def test_two_ranks_never_share_a_gpu(monkeypatch: pytest.MonkeyPatch, on_node: str | None) -> None:
    show(monkeypatch, "1", 1, on_node)
    with pytest.raises(
        ValueError, match=r"local rank 1 has no GPU of its own: 1 are visible on .*CUDA_VISIBLE_DEVICES: 0"
    ):
        process_groups._device("cuda")


def show(monkeypatch: pytest.MonkeyPatch, local: str, visible: int, on_node: str | None) -> None:
    give(monkeypatch, LOCAL_RANK=local, CUDA_VISIBLE_DEVICES="0")
    if on_node:
        give(monkeypatch, SLURM_GPUS_ON_NODE=on_node)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)


@pytest.mark.parametrize("number", loop.REQUESTS)
def test_a_request_to_stop_that_comes_twice_is_one(number: int) -> None:
    class Asked:
        stop_requested = False

    asked: Any = Asked()
    before = [signal.getsignal(request) for request in loop.REQUESTS]
    with loop.stoppable(asked):
        for _ in range(3):
            os.kill(os.getpid(), number)
    assert asked.stop_requested
    assert [signal.getsignal(request) for request in loop.REQUESTS] == before


def test_a_request_that_came_before_is_not_lost() -> None:
    class Asked:
        stop_requested = False

    asked: Any = Asked()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
    try:
        signal.raise_signal(signal.SIGURG)  # to this thread: other tests may have left some that do not hold it back
        with loop.stoppable(asked):
            assert asked.stop_requested
        assert signal.SIGURG in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fail(error: str) -> None:
    """Rank 1 of two ends with an error, or as asked, where leaving the process groups is a wait, as under NCCL."""
    import torch.distributed as dist

    def leave() -> None:
        print("leaves", flush=True)
        time.sleep(60)

    dist.get_backend = lambda *_: "nccl"  # type: ignore[assignment] # gloo's, which this machine has, is left at once
    dist.destroy_process_group = leave  # type: ignore[assignment]
    try:
        with process_groups.start(Runtime(device="cpu", layout=Layout(data=2), timeout_seconds=30.0)) as ranks:
            if ranks.world_rank == 0:
                time.sleep(60)
            raise SystemExit(143) if error == "stopped" else RuntimeError("what went wrong")
    except RuntimeError:
        traceback.print_exc()
        atexit._run_exitfuncs()  # as at the interpreter's end, which a forked process does not come to


@pytest.mark.slow
@pytest.mark.parametrize("error", ["failed", "stopped"])
def test_a_rank_that_fails_under_nccl_ends_at_once_and_says_why(tmp_path: Path, error: str) -> None:
    """Only an orderly end, which comes on every rank, leaves the process groups."""
    outputs = [tmp_path / f"{rank}" for rank in range(2)]
    processes = [
        start(fail, error, output=output, environment=environment)
        for output, environment in zip(outputs, environments(2, tmp_path / "store"), strict=True)
    ]
    try:
        end = time.monotonic() + 40
        while processes[1].exitcode is None and "leaves" not in outputs[1].read_text() and time.monotonic() < end:
            time.sleep(0.05)
        assert ("leaves" in outputs[1].read_text(), processes[1].exitcode) == (
            (False, 1) if error == "failed" else (True, None)
        )
        assert ("RuntimeError: what went wrong" in outputs[1].read_text()) == (error == "failed")
    finally:
        for process in processes:
            process.kill()
            process.join()
