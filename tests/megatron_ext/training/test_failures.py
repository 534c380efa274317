"""When one rank dies, every other rank fails soon and says so, without a launcher to end it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support.distributed import run_ranks


def die_in_a_collective(layout: dict[str, int]) -> None:
    """Rank 1 is killed while the others wait for it."""
    import torch
    import torch.distributed as dist

    from megatron_ext.config import Layout, Runtime
    from megatron_ext.distributed import process_groups

    with process_groups.start(Runtime(device="cpu", layout=Layout(**layout), timeout_seconds=20.0)) as ranks:
        dist.all_reduce(torch.ones(1))
        if ranks.world_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tensor": 2}, {"pipeline": 3}])
def test_the_others_fail_soon(layout: dict[str, int]) -> None:
    ranks = next(iter(layout.values()))
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as failure:
        run_ranks(die_in_a_collective, ranks, layout)
    assert time.monotonic() - begin < 90
    text = str(failure.value)
    assert all(f"rank {rank} of {ranks} failed" in text for rank in range(ranks))
    survivors = [part for part in text.split("failed:\n")[1:] if "Traceback" in part]
    assert len(survivors) == ranks - 1
    assert all("gloo" in part for part in survivors), "each names the connection that broke"


def test_a_layout_that_needs_more_ranks_is_refused() -> None:
    from megatron_ext.config import Layout, Runtime
    from megatron_ext.distributed import process_groups

    with (
        pytest.raises(ValueError, match=r"tensor=2, pipeline=2, data=1 needs 4 ranks, 1 were started"),
        process_groups.start(Runtime(device="cpu", layout=Layout(tensor=2, pipeline=2))),
    ):
        raise AssertionError("started")


def test_cuda_is_refused_where_there_is_none() -> None:
    import torch

    from megatron_ext.config import Runtime
    from megatron_ext.distributed import process_groups

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="no CUDA device"), process_groups.start(Runtime(device="cuda")):
        raise AssertionError("started")
