"""Drawing the next token: temperature, top-k and top-p, from numbers that belong to the request alone.

A request's draws follow from its seed, its prompt and the place of the new token. So they depend neither on the batch
nor on the layout, and two requests that differ in seed or prompt draw independently.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.distributed.vocab_parallel import VocabularyShards


@dataclass(frozen=True)
class Sampling:
    """How new tokens are drawn.

    With logits ``z``, a token has the probability ``p = softmax(z / temperature)``. Of these, ``top_k`` keeps the most
    likely tokens, and ``top_p`` of what is left, in shares of its sum, the fewest most likely ones that have at least
    this share together (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751). A token is drawn from what is kept,
    in shares of its sum. Among equally likely tokens the lowest id counts as the more likely one.

    Attributes:
        temperature: Above 0.
        top_p: Above 0, at most 1.
        top_k: At least 1; None for all tokens.
        seed: Which of the request's possible answers; any whole number.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise ``ValueError`` with the name of a number that is out of bounds."""
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature: {self.temperature}; allowed: a finite number above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p}; allowed: above 0, at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: {self.top_k}; allowed: at least 1")


def seeds(seed: int, n: int) -> list[int]:
    """``n`` different seeds that follow from one, those of a smaller ``n`` first."""
    return [_number("sample", seed, i) for i in range(n)]


def draw(
    logits_NV: Tensor,
    shards: VocabularyShards,
    how: Sequence[Sampling],
    prompts: Sequence[list[int]],
    places: Sequence[int],
) -> Tensor:
    """A token for each row. One all-gather of the logits over the tensor-parallel ranks.

    The kept tokens are laid side by side in the order of their ids, and the one that a uniform number falls on is
    drawn. In this order the last bits of logits, which depend on the layout, move the borders and nothing else.

    Args:
        logits_NV: This rank's columns.
        shards: Functions of such logits.
        how: Of each row how it is drawn.
        prompts: Of each row what it continues.
        places: Of each row how many new tokens there are before this one.

    Returns:
        int64 ``[N]``, equal on every tensor-parallel rank.
    """
    import torch

    whole_NV = _whole(logits_NV, shards).double()
    heat_N1 = whole_NV.new_tensor([one.temperature for one in how]).unsqueeze(-1)
    weights_NV = torch.softmax(whole_NV / heat_N1, dim=-1)
    limited = [i for i, one in enumerate(how) if one.top_k is not None or one.top_p < 1]
    if limited:
        weights_NV[limited] = _kept(weights_NV[limited], [how[i] for i in limited])
    bounds_NV = weights_NV.cumsum(dim=-1)
    rows = zip(how, prompts, places, strict=True)
    uniform = [_number("draw", one.seed, prompt, place) / 2**53 for one, prompt, place in rows]
    target_N1 = whole_NV.new_tensor(uniform).unsqueeze(-1) * bounds_NV[:, -1:]
    chosen_N = torch.searchsorted(bounds_NV, target_N1, right=True).squeeze(-1)
    # The product may be rounded up to the last bound; a token of weight 0 is never drawn.
    ids_V = torch.arange(weights_NV.size(-1), device=weights_NV.device)
    return torch.minimum(chosen_N, ((weights_NV > 0) * ids_V).amax(dim=-1))


def _whole(logits_NV: Tensor, shards: VocabularyShards) -> Tensor:
    """Every rank's columns side by side, without padding: ``[N, V]``, ``V`` the whole vocabulary."""
    import torch.distributed as dist

    if shards.group.size() == 1:
        return logits_NV[:, : shards.size]
    every = logits_NV.new_empty(shards.group.size(), *logits_NV.shape)
    dist.all_gather(list(every.unbind()), logits_NV.contiguous(), group=shards.group)
    return every.transpose(0, 1).flatten(1)[:, : shards.size]


def _kept(weights_NV: Tensor, how: Sequence[Sampling]) -> Tensor:
    """The weights, with 0 in place of what ``top_k`` and ``top_p`` leave out."""
    import torch

    sorted_NV, order_NV = weights_NV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(weights_NV.size(-1), device=weights_NV.device)
    count_N1 = rank_V.new_tensor([one.top_k or len(rank_V) for one in how]).unsqueeze(-1)
    sorted_NV = sorted_NV.masked_fill(rank_V >= count_N1, 0.0)
    share_N1 = weights_NV.new_tensor([one.top_p for one in how]).unsqueeze(-1)
    above_NV = sorted_NV.cumsum(dim=-1) - sorted_NV  # of what is more likely
    # Without a top_p nothing may be lost to rounding.
    full_N1 = share_N1 >= 1
    out_NV = (above_NV >= share_N1 * sorted_NV.sum(dim=-1, keepdim=True)) & ~full_N1
    return torch.zeros_like(weights_NV).scatter(-1, order_NV, sorted_NV.masked_fill(out_NV, 0.0))


def _number(*parts: object) -> int:
    """A whole number below 2^53 that follows from what is given, and looks random."""
    text = json.dumps(parts, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11
