"""Collectives that several parts need. With one rank they return at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.distributed.process_groups import Ranks

T = TypeVar("T")


def sum_over_data_ranks(tensor: Tensor, ranks: Ranks) -> Tensor:
    """Sum ``tensor`` over data-parallel ranks, in place. One all-reduce.

    Where each rank has filled in its own part and left zeros elsewhere, this gives every rank all of it.

    Args:
        tensor: Any shape and dtype, the same on every rank.
        ranks: Where this process stands.

    Returns:
        ``tensor``.
    """
    if ranks.layout.data > 1:
        dist.all_reduce(tensor, group=ranks.data_group)
    return tensor


def barrier(ranks: Ranks) -> None:
    """Wait for every rank.

    An all-reduce on the device: torch's own barrier does not say which device it means under NCCL.
    """
    if ranks.world_size > 1:
        done = torch.zeros(1, device=ranks.device)
        dist.all_reduce(done)
        done.item()  # under NCCL only this waits


def from_first_rank(value: Callable[[], T], ranks: Ranks) -> T:
    """What ``value()`` returns on world rank 0, on every rank; only that rank calls it. One broadcast.

    For what is read from disk: on a shared file system other ranks may still see an older state of it.
    """
    values: list[Any] = [value() if ranks.world_rank == 0 else None]
    if ranks.world_size > 1:
        dist.broadcast_object_list(values, src=0)
    result: T = values[0]
    return result


def gather_from_ranks(value: T, ranks: Ranks) -> list[T]:
    """Every rank's ``value``, by world rank, on every rank. One all-gather."""
    values: list[Any] = [value] * ranks.world_size
    if ranks.world_size > 1:
        dist.all_gather_object(values, value)
    return values
