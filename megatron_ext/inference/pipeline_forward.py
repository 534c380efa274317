"""What scoring and generation share: checks, batches by length, the forward pass stage by stage, results on every rank.

Data-parallel ranks each take every ``data``-th batch. The ranks that hold one copy of the model plan the same batches,
so that every pipeline stage knows the shapes of what it receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor
from tqdm import tqdm

from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel
from megatron_ext.model.families import family_of


def check_ids(hf_config: dict[str, Any], what: str, ids: Sequence[int]) -> None:
    """Raise ``ValueError``, naming ``what``, unless ``ids`` is a sequence that the model can read."""
    context, vocabulary = family_of(hf_config).context(hf_config), hf_config["vocab_size"]
    if not ids:
        raise ValueError(f"{what}: no tokens")
    if len(ids) > context:
        raise ValueError(f"{what}: {len(ids)} tokens, the model's context is {context}")
    if min(ids) < 0 or max(ids) >= vocabulary:
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise ValueError(f"{what}: token id {wrong} is not in the model's vocabulary of {vocabulary}")


def plan(lengths: Sequence[int], token_budget: int, ranks: Ranks) -> list[list[int]]:
    """Indices of ``lengths`` in batches of similar length, longest first, the same on every rank.

    Rows x longest of a batch is at most ``token_budget``, except that a batch has at least one row. No batch is so
    large that a data-parallel rank or a pipeline stage would have nothing to do meanwhile.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    share = -(-len(lengths) // (ranks.layout.data * ranks.layout.pipeline))
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, min(token_budget // lengths[order[start]], share))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def mine(batches: list[list[int]], ranks: Ranks, what: str, progress: bool) -> Iterator[list[int]]:
    """This data-parallel rank's batches, with a progress bar in sequences on the first rank."""
    own = batches[ranks.data_rank :: ranks.layout.data]
    shown = progress and ranks.world_rank == 0
    with tqdm(total=sum(map(len, own)), desc=what, unit="seq", disable=not shown, dynamic_ncols=True) as bar:
        for batch in own:
            yield batch
            bar.update(len(batch))


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Evaluation mode without gradients; the model's own mode is restored."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


class PipelineForward:
    """The forward pass of a batch through the pipeline; this rank's part of it."""

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self._sent: tuple[Any, Tensor] | None = None

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None = None, context: StaticInferenceContext | None = None
    ) -> Tensor | None:
        """Hidden states ``[s, b, h]`` on the last stage, None on the others.

        ``ids``: int64 ``[b, s]``; ``attention_mask``: bool, broadcastable to ``[b, heads, s, keys]``, true where
        attention is forbidden, None for causal. Receives from the stage before and sends to the stage after, where
        there is one; one send may be under way when this returns, so that stages work on successive batches at a time.
        """
        ranks = self.ranks
        if not ranks.is_first_stage:
            config = self.model.config
            length = ids.size(1) // (ranks.layout.tensor if config.sequence_parallel else 1)
            shape = (length, ids.size(0), config.hidden_size)
            received = torch.empty(shape, dtype=ranks.dtype, device=ranks.device)
            dist.recv(received, group=ranks.pipeline_group, group_src=ranks.pipeline_rank - 1)
            self.model.set_input_tensor(received)
        try:
            hidden = self.model(ids, None, attention_mask, inference_context=context)
        finally:
            self.model.set_input_tensor(None)
        if ranks.is_last_stage:
            return hidden
        self.finish()
        hidden = hidden.contiguous()
        work = dist.isend(hidden, group=ranks.pipeline_group, group_dst=ranks.pipeline_rank + 1)
        self._sent = (work, hidden)
        return None

    def finish(self) -> None:
        """Wait for the last send."""
        if self._sent is not None:
            self._sent[0].wait()
            self._sent = None

    def from_last(self, tensor: Tensor) -> Tensor:
        """Overwrite ``tensor`` with the last stage's, on every stage. One broadcast over the pipeline's ranks."""
        if self.ranks.layout.pipeline > 1:
            dist.broadcast(tensor, group=self.ranks.pipeline_group, group_src=self.ranks.layout.pipeline - 1)
        return tensor


def once(items: Sequence[Any], key: Callable[[Any], Any]) -> tuple[list[int], list[int]]:
    """``(first, of)``: the indices of the distinct items, and for each item the position of its equal in ``first``."""
    seen: dict[Any, int] = {}
    first: list[int] = []
    of = []
    for i, item in enumerate(items):
        place = seen.setdefault(key(item), len(first))
        if place == len(first):
            first.append(i)
        of.append(place)
    return first, of
