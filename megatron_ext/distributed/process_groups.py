"""Ranks: the device, the process groups and the place of this process in the layout."""

from __future__ import annotations

import atexit
import gc
import os
import random
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from megatron_ext.config import Layout, Runtime
from megatron_ext.distributed import kernels, rendezvous

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


# megatron-core's remarks about what is not installed on a CPU, and torch's about megatron-core's calls.
_KNOWN_WARNINGS = (
    "Transformer Engine and Apex",
    "Apex is not installed",
    "full scope is deprecated",
    "`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
    "The .grad attribute of a Tensor that is not a leaf",
)


@dataclass(frozen=True)
class Ranks:
    """Where this process stands, and with whose layers it computes.

    Groups are torch process groups of the ranks that share the other coordinates.
    """

    layout: Layout
    device: torch.device
    dtype: torch.dtype
    world_rank: int
    world_size: int
    tensor_rank: int
    pipeline_rank: int
    data_rank: int
    tensor_group: ProcessGroup
    pipeline_group: ProcessGroup
    data_group: ProcessGroup
    kernels: Literal["torch", "te"] = "torch"

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.layout.pipeline - 1

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def __str__(self) -> str:
        return (
            f"rank {self.world_rank} of {self.world_size} (tensor {self.tensor_rank}, pipeline {self.pipeline_rank}, "
            f"data {self.data_rank})"
        )


@contextmanager
def start(spec: Runtime, seed: int = 0) -> Iterator[Ranks]:
    """Join the process groups of ``spec.layout``; leave them at the end.

    Ranks are numbered by the environment that their launcher sets, see ``rendezvous.launched``; without it, this is the
    only rank. Every collective fails on every rank after ``spec.timeout_seconds``, and so does the start where
    ranks are missing.

    After an error on one of several GPUs the groups are not left: NCCL waits there for kernels that the other ranks
    never join, until the time-out. The process ends at once instead, when the error has been printed.

    Args:
        spec: Layout, device, precision, threads, kernels.
        seed: Of the random states of Python, numpy and torch.

    Yields:
        Where this process stands.

    Raises:
        ValueError: The layout does not fit the number of ranks or devices, the environment names a part only, or the
            kernels are not installed.
        RuntimeError: Not all ranks met in time.
    """
    with _collecting_nothing():
        import numpy as np
        import torch
        import torch.distributed as dist

    world_rank, world_size = rendezvous.launched()
    if world_size != spec.layout.ranks:
        raise ValueError(f"the layout {_short(spec.layout)} needs {spec.layout.ranks} ranks, {world_size} were started")
    device = _device(spec.device)
    torch.set_num_threads(spec.threads)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        kernels.choose(spec)
    _meet(spec, device, world_rank, world_size)
    try:
        hide_known_warnings()
        with _collecting_nothing():
            if device.type == "cpu":
                from megatron_ext.distributed import cpu

                cpu.install()
            if spec.kernels == "torch":
                kernels.use_torch_optimizers()
            ranks = model_parallel(spec, device, world_rank, world_size)
        yield ranks
    except BaseException as error:
        # A program that ends with a number has ended in order, on every rank.
        orderly = isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int))
        if not orderly and world_size > 1 and dist.get_backend() == "nccl":
            atexit.register(_end)
        else:
            leave()
        raise
    else:
        leave()


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """While modules are imported: Python's collector would look through what they define again and again, and find
    nothing, for a fifth of the processor time of a start."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def hide_known_warnings() -> None:
    """Say nothing of what megatron-core and torch always remark."""
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def leave() -> None:
    """Leave all process groups. After a failure this closes gloo's connections, so that the other ranks' collectives
    fail at once."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _end() -> None:
    """End this process, without the destructors that wait for other ranks; called when it ends after an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _meet(spec: Runtime, device: torch.device, world_rank: int, world_size: int) -> None:
    """Join the group of all ranks; raises ``RuntimeError`` where they do not all come in time."""
    import torch.distributed as dist

    from megatron_ext.distributed import received_data

    received_data.install()
    timeout = timedelta(seconds=spec.timeout_seconds)
    more: dict[str, Any] = {}
    if device.type == "cuda":
        more["device_id"] = device  # so that NCCL need not guess it, and connects now: what is wrong shows here
    try:
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            rank=world_rank,
            world_size=world_size,
            timeout=timeout,
            store=rendezvous.store(world_rank, world_size, timeout),
            **more,
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {world_rank} of {world_size} on {socket.gethostname()}: the ranks did not all meet at "
            f"{rendezvous.place()} within {spec.timeout_seconds:g} s: {str(error).splitlines()[0]}"
        ) from error


def model_parallel(spec: Runtime, device: torch.device, world_rank: int, world_size: int) -> Ranks:
    """Split the ranks by the layout; where this process stands in it."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import initialize_rng_tracker

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=spec.layout.tensor,
        pipeline_model_parallel_size=spec.layout.pipeline,
        distributed_timeout_minutes=spec.timeout_seconds / 60,
        create_gloo_process_groups=False,
    )
    # The one that leaves random states alone: nothing here draws random numbers between parallel regions, and the one
    # for training wants a CUDA generator, seeded, and waits for the device at every fork.
    initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
    return Ranks(
        layout=spec.layout,
        device=device,
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[spec.precision],
        world_rank=world_rank,
        world_size=world_size,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
        data_group=parallel_state.get_data_parallel_group(),
        kernels=spec.kernels,
    )


def _device(wanted: str) -> torch.device:
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device: 'cuda' was asked for, but torch sees no CUDA device; allowed here: 'cpu', 'auto'")
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if count == 1 and int(os.environ.get("SLURM_GPUS_ON_NODE", 1)) > local:
        return torch.device("cuda", 0)  # Slurm shows each of the node's ranks a GPU of its own
    if local >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise ValueError(
            f"local rank {local} has no GPU of its own: {count} are visible on {socket.gethostname()} "
            f"(CUDA_VISIBLE_DEVICES: {visible})"
        )
    return torch.device("cuda", local)


def _short(layout: Layout) -> str:
    return f"tensor={layout.tensor}, pipeline={layout.pipeline}, data={layout.data}"
