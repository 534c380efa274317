"""Collectives that several parts need. With one rank they return at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

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
    """What ``value()`` returns on world rank 0, on every rank; only that rank calls it. Two broadcasts.

    For what is read from disk: on a shared file system other ranks may still see an older state of it. It travels as
    JSON, not as torch's pickled objects: what another rank sends is data, whoever may have sent it in its place.

    Args:
        value: Makes what JSON holds: texts, numbers, truth values, None, and lists and dictionaries of them.
        ranks: Where this process stands.

    Returns:
        The value.
    """
    if ranks.world_size == 1:
        return value()
    own_B = _bytes(value()) if ranks.world_rank == 0 else torch.empty(0, dtype=torch.uint8)
    length = torch.tensor(len(own_B), device=ranks.device)
    dist.broadcast(length, src=0)
    sent_B = own_B.to(ranks.device) if ranks.world_rank == 0 else own_B.new_empty(int(length), device=ranks.device)
    dist.broadcast(sent_B, src=0)
    result: T = _value(sent_B)
    return result


def gather_from_ranks(value: T, ranks: Ranks, group: ProcessGroup | None = None) -> list[T]:
    """Every rank's ``value``, on every rank. Two all-gathers.

    Args:
        value: What JSON holds, as in ``from_first_rank``.
        ranks: Where this process stands.
        group: Whose values; by default those of all ranks.

    Returns:
        The values, by rank in the group.
    """
    size = dist.get_world_size(group)
    if size == 1:
        return [value]
    own_B = _bytes(value).to(ranks.device)
    lengths = list(torch.empty(size, dtype=torch.int64, device=ranks.device).split(1))
    dist.all_gather(lengths, torch.tensor([len(own_B)], device=ranks.device), group=group)
    longest = max(map(int, lengths))
    padded_B = torch.cat([own_B, own_B.new_zeros(longest - len(own_B))])
    found = [torch.empty_like(padded_B) for _ in range(size)]
    dist.all_gather(found, padded_B, group=group)
    return [_value(each_B[: int(length)]) for each_B, length in zip(found, lengths, strict=True)]


def _bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _value(text_B: Tensor) -> Any:
    return json.loads(text_B.cpu().numpy().tobytes())
