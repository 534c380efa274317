"""Mixtures of experts, spread over the tensor-parallel ranks.

``layout.expert`` groups of these ranks have different experts; within a group each expert's matrices are split, as a
dense model's are. Every rank has the hidden states already, so that no token is sent anywhere: a rank adds up what its
shares of experts give, and one all-reduce makes the sum of all of them, as behind a dense MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.families import Experts


class Expert(torch.nn.Module):
    """This rank's share of a gated MLP."""

    def __init__(self, hidden: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        skip = torch.nn.utils.skip_init  # values are set when the model is filled
        self.linear_fc1 = skip(torch.nn.Linear, hidden, 2 * width, bias=False, dtype=dtype)
        self.linear_fc2 = skip(torch.nn.Linear, width, hidden, bias=False, dtype=dtype)

    def forward(self, x_NH: Tensor) -> Tensor:
        gate, up = self.linear_fc1(x_NH).chunk(2, dim=-1)
        out_NH: Tensor = self.linear_fc2(F.silu(gate) * up)
        return out_NH


class Stack(torch.nn.Module):
    """A matrix and a bias of each of this rank's experts, ``[experts, inputs, outputs]`` and ``[experts, outputs]``."""

    def __init__(self, count: int, inputs: int, outputs: int, biases: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(count, inputs, outputs, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(count, biases, dtype=dtype))


class StackedExperts(torch.nn.Module):
    """This rank's shares of experts with biases, whose matrices lie in one tensor (gpt-oss).

    Of what the second bias adds, a rank has some columns, so that it is counted once in the sum over ranks.
    """

    def __init__(self, kind: Experts, count: int, hidden: int, width: int, shards: int, shard: int, dtype: Any) -> None:
        super().__init__()
        assert kind.clamp is not None
        self._slope, self._limit = kind.clamp
        own = hidden // shards
        self._beside = shard * own, hidden - (shard + 1) * own
        self.linear_fc1 = Stack(count, hidden, 2 * width, 2 * width, dtype)
        self.linear_fc2 = Stack(count, width, hidden, own, dtype)

    def each(self) -> list[Callable[[Tensor], Tensor]]:
        """A function of hidden states ``[N, H]`` for each expert; a backward pass makes one gradient of all."""
        first, second = self.linear_fc1, self.linear_fc2
        parts = zip(*(x.unbind() for x in (first.weight, first.bias, second.weight, second.bias)), strict=True)
        return [partial(self._one, *part) for part in parts]

    def _one(self, wide: Tensor, wide_bias: Tensor, high: Tensor, high_bias: Tensor, x_NH: Tensor) -> Tensor:
        both = x_NH @ wide + wide_bias
        gate = both[..., ::2].clamp(max=self._limit)
        up = both[..., 1::2].clamp(min=-self._limit, max=self._limit)
        inside = (up + 1) * gate * torch.sigmoid(gate * self._slope)
        return inside @ high + F.pad(high_bias, self._beside)


class MixtureOfExperts(torch.nn.Module):
    """A layer's router and this rank's shares of its experts.

    The router is on every rank. Experts are dealt to the groups in turn: the first group has the experts 0, ``ways``,
    2 ``ways`` and so on.

    Attributes:
        kind: How many experts there are, and how they are chosen.
        ways: How many groups of ranks have different experts.
        group: Which of them this rank is in.
        shards: Over how many ranks of the group each expert is split.
        shard: Which of them this rank is.
    """

    kind: Experts
    ways: int
    group: int
    shards: int
    shard: int

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        kind, hidden, dtype = self.kind, config.hidden_size, config.params_dtype
        self.sequence_parallel = config.sequence_parallel
        self.router = torch.nn.utils.skip_init(torch.nn.Linear, hidden, kind.count, bias=kind.stacked, dtype=dtype)
        own, width = kind.count // self.ways, kind.width // self.shards
        self.experts: torch.nn.ModuleList | StackedExperts
        if kind.stacked:
            self.experts = StackedExperts(kind, own, hidden, width, self.shards, self.shard, dtype)
        else:
            self.experts = torch.nn.ModuleList(Expert(hidden, width, dtype) for _ in range(own))
        self.shared_experts = Expert(hidden, kind.shared // (self.ways * self.shards), dtype) if kind.shared else None

    def forward(self, hidden_SBH: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Each position's chosen experts, in shares; ``[S, B, H]``, and no bias.

        An expert that no position chose runs on nothing, so that its matrices have a gradient, of zeros.
        """
        if self.sequence_parallel:
            # Every rank's gradient of all positions is whole: each takes its part of it.
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, tensor_parallel_output_grad=False)
        x_NH = hidden_SBH.flatten(0, 1)
        scores_NE = F.linear(x_NH.float(), self.router.weight.float()) if self.kind.precise else self.router(x_NH)
        shares_NK, chosen_NK = scores_NE.softmax(dim=-1, dtype=torch.float32).topk(self.kind.chosen, dim=-1)
        if self.kind.normalised:
            shares_NK = shares_NK / shares_NK.sum(dim=-1, keepdim=True)
        if self.kind.scale != 1.0:
            shares_NK = shares_NK * self.kind.scale
        # From here on a rank's gradients are of its own experts; backward sums them over the ranks.
        shares_NK = copy_to_tensor_model_parallel_region(shares_NK.to(x_NH.dtype))
        x_NH = copy_to_tensor_model_parallel_region(x_NH)
        out_NH = torch.zeros_like(x_NH) if self.shared_experts is None else self.shared_experts(x_NH)
        experts: Iterable[Any] = self.experts.each() if isinstance(self.experts, StackedExperts) else self.experts
        for local, expert in enumerate(experts):
            row, place = torch.where(chosen_NK == local * self.ways + self.group)
            out_NH = out_NH.index_add(0, row, expert(x_NH[row]) * shares_NK[row, place].unsqueeze(-1))
        out_SBH = reduce_from_tensor_model_parallel_region(out_NH).view_as(hidden_SBH)
        if self.sequence_parallel:
            out_SBH = scatter_to_sequence_parallel_region(out_SBH)
        return out_SBH, None


def mixture_of_experts(kind: Experts, ranks: Ranks) -> type[MixtureOfExperts]:
    """The layer of a model at this rank's place, for a layer spec; raises ``ValueError`` for what cannot be split."""
    ways = ranks.layout.expert
    shards = ranks.layout.tensor // ways
    if kind.count % ways or kind.width % shards or kind.shared % ranks.layout.tensor:
        message = f"{kind.count} experts of width {kind.width} do not divide over {ways} groups of {shards} ranks"
        raise ValueError(f"expert: {ways}: {message}")
    group, shard = divmod(ranks.tensor_rank, shards)
    place = {"kind": kind, "ways": ways, "group": group, "shards": shards, "shard": shard}
    return type("MixtureOfExpertsHere", (MixtureOfExperts,), place)
