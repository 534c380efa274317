"""Collectives that several parts need."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.distributed.process_groups import Ranks


def over_data_ranks(tensor: Tensor, ranks: Ranks) -> Tensor:
    """Sum of every data-parallel rank's ``tensor``, in place: what the others computed, where they left zeros."""
    if ranks.layout.data > 1:
        dist.all_reduce(tensor, group=ranks.data_group)
    return tensor


def barrier(ranks: Ranks) -> None:
    """Wait for every rank."""
    if ranks.world_size > 1:
        done = torch.zeros(1, device=ranks.device)
        dist.all_reduce(done)
        done.item()  # under NCCL only this waits
