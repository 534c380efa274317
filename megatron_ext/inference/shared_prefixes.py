"""Batches of texts in which what texts begin with alike is read once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.packing import Packing, Stretch, pack

Text = tuple[int, ...]

# Of a text's tokens; a shorter beginning is read again, which is cheaper than attention that has to be told of it.
WORTH_SHARING = 1 / 8


def shared(before: Text, text: Text) -> int:
    """How many tokens of ``text`` need not be read after ``before``: what both begin with, unless that is little."""
    count = 0
    for ours, theirs in zip(before, text, strict=False):
        if ours != theirs:
            break
        count += 1
    return count if count >= WORTH_SHARING * len(text) else 0


def plan(texts: Sequence[Text], token_budget: int, ranks: Ranks) -> list[list[Text]]:
    """Batches of texts in lexical order, so that those with a common beginning are neighbours. The same on every rank.

    No batch is so large that a data-parallel rank or a pipeline stage would have nothing to do meanwhile.

    Args:
        texts: Distinct token ids.
        token_budget: Bound on the tokens that are read for a batch, which always has one text.
        ranks: Where this process stands.
    """
    ordered = sorted(texts)
    news = [len(text) - shared(before, text) for before, text in zip([(), *ordered], ordered, strict=False)]
    budget = min(token_budget, math.ceil(sum(news) / (ranks.layout.data * ranks.layout.pipeline)))
    batches: list[list[Text]] = []
    tokens = 0
    for text, new in zip(ordered, news, strict=True):
        if not batches or tokens + new > budget:
            batches.append([])
            tokens = 0
            new = len(text)
        batches[-1].append(text)
        tokens += new
    return batches


def packed(batch: Sequence[Text], key_budget: int, device: torch.device) -> tuple[torch.Tensor, Packing, list[Stretch]]:
    """What is read of a batch.

    Args:
        batch: Texts as ``plan`` gives them.
        key_budget: As for ``pack``.
        device: Where the tensors go.

    Returns:
        Token ids, int64 ``[1, T]``; where they stand in the texts; and of each text where its tokens are.
    """
    ids: list[int] = []
    stretches: list[Stretch] = []
    before: Text = ()
    for text in batch:
        start = shared(before, text)
        path = [*(stretches[-1].path[:start] if start else ()), *range(len(ids), len(ids) + len(text) - start)]
        ids += text[start:]
        stretches.append(Stretch(path, start))
        before = text
    return torch.tensor([ids], device=device), pack(stretches, key_budget, device), stretches
