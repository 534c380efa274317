"""What scoring and generation share: checks, batches by length, the forward pass stage by stage, results on every rank.

Data-parallel ranks each take every ``data``-th batch. The ranks that hold one copy of the model plan the same batches,
so that every pipeline stage knows the shapes of what it receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel
from megatron_ext.model.cache import Cache
from megatron_ext.model.families import family_of
from megatron_ext.model.packing import Reading

T = TypeVar("T")


class Readable:
    """What sequences a model can read."""

    def __init__(self, hf_config: dict[str, Any]) -> None:
        self.context, self.vocabulary = family_of(hf_config).context(hf_config), hf_config["vocab_size"]

    def check(self, what: str, ids: Sequence[int]) -> None:
        """Check that the model can read a sequence.

        Args:
            what: What an error calls the sequence.
            ids: Token ids.

        Raises:
            ValueError: There are no ids, more than the model's context, or one that is not in its vocabulary.
        """
        if not ids:
            raise ValueError(f"{what}: no tokens")
        if len(ids) > self.context:
            raise ValueError(f"{what}: {len(ids)} tokens, the model's context is {self.context}")
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            wrong = next(i for i in ids if not 0 <= i < self.vocabulary)
            raise ValueError(f"{what}: token id {wrong} is not in the model's vocabulary of {self.vocabulary}")


def plan(lengths: Sequence[int], token_budget: int, ranks: Ranks) -> list[list[int]]:
    """Batches of sequences of similar length, longest first, the same on every rank.

    No batch is so large that a data-parallel rank or a pipeline stage would have nothing to do meanwhile.

    Args:
        lengths: Tokens of each sequence.
        token_budget: Bound on a batch's rows times its longest sequence; a batch has at least one row in any case.
        ranks: Where this process stands.

    Returns:
        Of each batch the indices of its sequences in ``lengths``.
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


def own_batches(batches: list[list[T]], ranks: Ranks) -> list[list[T]]:
    """This data-parallel rank's batches."""
    return batches[ranks.data_rank :: ranks.layout.data]


def progress_bar(own: Sequence[Sequence[Any]], ranks: Ranks, title: str, progress: bool) -> tqdm[Any]:
    """A progress bar in sequences, shown on the first rank."""
    shown = progress and ranks.world_rank == 0
    return tqdm(total=sum(map(len, own)), desc=title, unit="seq", disable=not shown, dynamic_ncols=True)


def rank_batches(batches: list[list[T]], ranks: Ranks, title: str, progress: bool) -> Iterator[list[T]]:
    """This data-parallel rank's batches, with a progress bar on the first rank."""
    own = own_batches(batches, ranks)
    with progress_bar(own, ranks, title, progress) as bar:
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
    """This rank's part of the forward pass of batches through the pipeline."""

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self._sent: tuple[Any, Tensor] | None = None

    def forward(
        self, ids: Tensor, attention_mask: Tensor | Reading | None = None, context: Cache | None = None
    ) -> Tensor | None:
        """Run this stage on one batch.

        Receives from the stage before and sends to the stage after, where there is one. One send may be under way when
        this returns, so that stages work on successive batches at the same time.

        Args:
            ids: int64 ``[B, S]``.
            attention_mask: bool, broadcastable to ``[B, heads, S, keys]``, true where attention is forbidden; None for
                causal attention; or where the tokens of several texts stand in one row.
            context: The key-value cache of a generation.

        Returns:
            Hidden states ``[S, B, H]`` on the last stage, None on the others.
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


@dataclass(frozen=True)
class Distinct(Generic[T]):
    """The distinct items of a sequence.

    Attributes:
        items: The first of each group of equal items, in their order.
        place_of: Of each item of the sequence the place of its equal in ``items``.
    """

    items: list[T]
    place_of: list[int]


def deduplicate(items: Sequence[T], key: Callable[[T], Any]) -> Distinct[T]:
    """The distinct ``items``; two are equal whose ``key`` is."""
    places: dict[Any, int] = {}
    distinct: list[T] = []
    place_of = []
    for item in items:
        place = places.setdefault(key(item), len(distinct))
        if place == len(distinct):
            distinct.append(item)
        place_of.append(place)
    return Distinct(distinct, place_of)
