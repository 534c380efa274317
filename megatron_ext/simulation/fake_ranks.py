"""A rank that exists alone: groups of all sizes whose other ranks are not there, and tensors without contents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ext.config import Runtime
from megatron_ext.distributed import cpu, process_groups
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.simulation.recorder import Recorder


@contextmanager
def pretended(runtime: Runtime, rank: int) -> Iterator[tuple[Ranks, Recorder]]:
    """Be one rank of a layout. Within the context no tensor has contents, whatever its size, and no message is sent.

    Args:
        runtime: Layout and precision; the device is the CPU.
        rank: Which of the layout's ranks.

    Yields:
        Where the rank stands, and what it does.
    """
    process_groups.hide_known_warnings()
    cpu.install()
    dist.init_process_group("fake", rank=rank, world_size=runtime.layout.ranks, store=FakeStore())
    try:
        ranks = process_groups.model_parallel(runtime, torch.device("cpu"), rank, runtime.layout.ranks)
        world = dist.group.WORLD
        assert world is not None
        groups = {"world": world, "tensor": ranks.tensor_group, "data": ranks.data_group}
        recorder = Recorder({**groups, "pipeline": ranks.pipeline_group})
        with ExitStack() as stack:
            # What torch cannot do without contents: move parameters to where they are, and read what others send.
            stack.enter_context(mock.patch.object(torch.nn.Module, "to", lambda module, *_, **__: module))
            stack.enter_context(mock.patch.object(dist, "all_gather_object", _own_object))
            stack.enter_context(mock.patch.object(torch.nn.functional, "rms_norm", _norm))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(recorder)
            yield ranks, recorder
    finally:
        process_groups.leave()


class _FusedNorm(torch.autograd.Function):
    """RMSNorm as a GPU's one kernel has it: it keeps its input, and a number of each position.

    The CPU's keeps two fp32 tensors of the input's size, which are not what a plan for GPUs is to be held against.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
    """In place of ``torch.nn.functional.rms_norm``, for all norms here, which have a weight and norm the last axis."""
    normed: Tensor = _FusedNorm.apply(x, weight)
    return normed


def _own_object(objects: list[Any], own: Any, group: Any = None) -> None:
    """megatron-core asks every rank for its groups of parameters, which are the same everywhere."""
    objects[:] = [own] * len(objects)


@contextmanager
def received_shapes(accumulator: Any, length: int, hidden: int) -> Iterator[None]:
    """Within the context, pipeline stages know the shapes that their neighbours would tell them.

    Args:
        accumulator: The ``GradientAccumulator`` whose micro-batches they are.
        length: Positions of a row.
        hidden: Width of the states.
    """
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    run, told = accumulator._run_schedule, P2PCommunicator._communicate_shapes
    forward: Iterator[list[int]] = iter(())
    backward: Iterator[list[int]] = iter(())

    def shape(rows: int) -> list[int]:
        packed, here = accumulator.packed, accumulator.length_multiple
        return [math.ceil((rows if packed else 1) * length / here), 1 if packed else rows, hidden]

    def schedule(forward_step_func: Callable[..., Any], **given: Any) -> Any:
        nonlocal forward, backward
        items = forward_step_func.__self__.items  # type: ignore[attr-defined] # a method of the pass
        shapes = [shape(len(item.rows)) for item in items]
        forward, backward = iter(shapes), iter(shapes)
        return run(forward_step_func=forward_step_func, **given)

    def communicate(communicator: Any, ahead: Any, behind: Any, recv_prev: bool, recv_next: bool) -> tuple[Any, Any]:
        told(communicator, ahead, behind, recv_prev, recv_next)
        return next(forward) if recv_prev else None, next(backward) if recv_next else None

    with (
        mock.patch.object(accumulator, "_run_schedule", schedule),
        mock.patch.object(P2PCommunicator, "_communicate_shapes", communicate),
    ):
        yield
