"""Gradients and losses of a global batch, micro-batch by micro-batch, through Megatron's schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ext.data.collate import MicroBatch
from megatron_ext.distributed.collectives import gather_from_ranks, sum_over_data_ranks
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.distributed.vocab_parallel import VocabularyShards
from megatron_ext.model.build import LanguageModel
from megatron_ext.model.loss_inputs import LossInputs
from megatron_ext.model.packed_rows import reading_of
from megatron_ext.training.gradients import GradientSpace
from megatron_ext.training.loss_terms import LossTerm
from megatron_ext.training.reference_model import ReferenceModel


class NonFinite(RuntimeError):
    """A loss or gradient is NaN or infinite; nothing was written to the weights."""


@dataclass(frozen=True)
class Accumulated:
    """What a pass over micro-batches leaves beside the gradient.

    Attributes:
        sums: Of each term the sum of its loss over this rank's micro-batches: fp64 scalars, zero on ranks that repeat
            another's numbers. Their sum over all ranks is the loss sum of the global batch.
        last_weight: The last term's weight after ``adapt``; zero on all ranks but one.
    """

    sums: list[Tensor]
    last_weight: float


class GradientAccumulator:
    """Leaves in the buffers of Megatron's DistributedDataParallel the gradient of a weighted sum of mean losses.

    Gradients accumulate over micro-batches in fp32 and are reduced over data-parallel ranks (and tied embeddings over
    pipeline ends) before anything reads them. A loss is divided by the number of its units in the global batch, never
    averaged over micro-batches or ranks.
    """

    def __init__(
        self,
        model: LanguageModel,
        ddp: DistributedDataParallel,
        optimizer: Any,
        ranks: Ranks,
        micro_batch: int,
        reference_model: ReferenceModel | None = None,
        micro_batch_tokens: int | None = None,
        packed: bool = False,
    ) -> None:
        """Wrap what a trainer has built.

        Args:
            model: This rank's stage of the model.
            ddp: The same, in DistributedDataParallel.
            optimizer: Megatron's, whose gradients are set to zero first.
            ranks: Where this process stands.
            micro_batch: Sequences of one forward pass.
            reference_model: The model before unlearning, for losses that need it.
            micro_batch_tokens: Bound on the tokens of one forward pass.
            packed: Whether its sequences follow one another, without padding.
        """
        self.model, self.ddp, self.ranks, self.micro_batch = model, ddp, ranks, micro_batch
        self.micro_batch_tokens, self.packed = micro_batch_tokens, packed
        self.reference_model = reference_model
        self.space = GradientSpace(ddp, ranks)
        self.vocabulary = VocabularyShards(ranks.tensor_group, model.hf_config["vocab_size"])
        # Under sequence parallelism positions are split over tensor-parallel ranks.
        self.length_multiple = ranks.layout.tensor if model.config.sequence_parallel else 1
        self._optimizer = optimizer
        self._run_schedule = get_forward_backward_func()

    def accumulate(
        self, terms: Sequence[LossTerm], weights: Sequence[float], adapt: Callable[[float], float] | None = None
    ) -> Accumulated:
        """Leave the reduced gradient of ``sum_i weight_i * mean loss_i`` in the buffers. Collective over all ranks.

        Args:
            terms: The losses.
            weights: One for each term.
            adapt: Replaces the last term's weight after each of its micro-batches; see ``Step.descend``.

        Returns:
            Loss sums of this rank, and the last term's weight.
        """
        self.ddp.zero_grad_buffer()
        self._optimizer.zero_grad()
        return self._pass(terms, weights, adapt, forward_only=False)

    def mean_loss(self, term: LossTerm) -> float:
        """The mean loss of a term over its rows, without gradients. Forward passes and one all-reduce.

        Args:
            term: The loss and its rows.

        Returns:
            The mean, equal on every rank.

        Raises:
            NonFinite: The loss is not finite; on every rank.
        """
        with torch.no_grad():
            passed = self._pass([term], [1.0], None, forward_only=True)
        own = passed.sums[0].reshape(1)
        totals = self.space.reduce(own.clone())
        self.refuse_non_finite(totals, own, [term.name], 0)
        return totals[0] / term.units

    def refuse_non_finite(self, totals: list[float], own: Tensor, losses: Sequence[str], first: int) -> None:
        """Raise ``NonFinite`` on every rank, naming the rank that it began on, where a number is not finite.

        Args:
            totals: Sums over all ranks.
            own: This rank's part of each of them, fp64 ``[m]``.
            losses: What the totals from place ``first`` on are the sums of.
            first: Where the sums of losses begin; what is before belongs to gradients.
        """
        if all(map(math.isfinite, totals)):
            return
        sums = zip(losses, totals[first : first + len(losses)], strict=True)
        broken = [f"{name} is {total}" for name, total in sums if not math.isfinite(total)]
        if broken:  # gradients are broken too then, on every rank that they are reduced to
            own = own[first : first + len(losses)]
        named = gather_from_ranks(None if bool(own.isfinite().all()) else str(self.ranks), self.ranks)
        what = ", ".join(broken) or "a gradient is not finite"
        raise NonFinite(f"{what}; first seen on {', '.join(filter(None, named)) or 'no single rank'}")

    def _pass(
        self,
        terms: Sequence[LossTerm],
        weights: Sequence[float],
        adapt: Callable[[float], float] | None,
        forward_only: bool,
    ) -> Accumulated:
        work = _Pass(self, terms, weights, adapt)
        work.compute_reference_hidden()
        self.ddp.train()
        self._run_schedule(
            forward_step_func=work.forward_step,
            data_iterator=work.micro_batches(),
            model=self.ddp,
            num_microbatches=len(work.items),
            seq_length=max(term.longest for term in terms),
            micro_batch_size=self.micro_batch,
            forward_only=forward_only,
        )
        ranks = self.ranks
        counts = ranks.is_last_stage and ranks.tensor_rank == 0 and ranks.data_rank == 0
        return Accumulated(work.sums, work.weights[-1] if counts else 0.0)


@dataclass(frozen=True)
class _Item:
    """One micro-batch of a pass: its place in the pass, the number of its term, and this rank's rows of it."""

    place: int
    term: int
    rows: list[int]


class _Pass:
    """One pass over all micro-batches of several terms, and what it adds up as Megatron's schedule calls it."""

    def __init__(
        self,
        accumulator: GradientAccumulator,
        terms: Sequence[LossTerm],
        weights: Sequence[float],
        adapt: Callable[[float], float] | None,
    ) -> None:
        self._accumulator, self._terms, self._adapt = accumulator, terms, adapt
        size, ranks = accumulator.micro_batch, accumulator.ranks
        dealt = [term.micro_batches(size, ranks, accumulator.micro_batch_tokens, accumulator.packed) for term in terms]
        batches = [(i, rows) for i, own in enumerate(dealt) for rows in own]
        self.items = [_Item(place, i, rows) for place, (i, rows) in enumerate(batches)]
        self.sums = [torch.zeros((), dtype=torch.float64, device=ranks.device) for _ in terms]
        self.weights = list(weights)
        self._units = [term.units for term in terms]
        self._reference_hidden: dict[int, Tensor | None] = {}  # by the item's place

    def compute_reference_hidden(self) -> None:
        """Run the model before unlearning on the micro-batches whose losses need it. Collective over the pipeline."""
        needing = [item for item in self.items if self._terms[item.term].loss.needs_reference_model]
        if not needing:
            return
        reference_model = self._accumulator.reference_model
        if reference_model is None:
            raise ValueError("a loss needs the model before unlearning, and the trainer has none")
        hidden = reference_model.hidden([self._collate(item) for item in needing])
        self._reference_hidden = {item.place: states for item, states in zip(needing, hidden, strict=True)}

    def micro_batches(self) -> Iterator[tuple[_Item, MicroBatch]]:
        """Each item with its tensors, in the order of the pass."""
        for item in self.items:
            yield item, self._collate(item)

    def forward_step(self, data: Iterator[tuple[_Item, MicroBatch]], ddp: torch.nn.Module) -> tuple[Tensor, Any]:
        """What Megatron's schedule calls for each micro-batch: the stage's output, and the function that makes the
        loss of the last stage's."""
        item, batch = next(data)
        return ddp(batch.tokens, None, reading_of(batch)), partial(self._loss, item, batch)

    def _collate(self, item: _Item) -> MicroBatch:
        term, accumulator = self._terms[item.term], self._accumulator
        device, multiple = accumulator.ranks.device, accumulator.length_multiple
        return term.dataset.collate(item.rows, device, term.loss.input_positions, multiple, accumulator.packed)

    def _loss(self, item: _Item, batch: MicroBatch, hidden_SBH: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The micro-batch's weighted share of the mean loss, in the form that Megatron's schedule expects: with a count
        of tokens, which nothing uses, and numbers to report, of which there are none."""
        accumulator, term = self._accumulator, self._terms[item.term]
        reference_model = accumulator.reference_model
        inputs = LossInputs(
            hidden=accumulator.model.gather_positions(hidden_SBH, batch.index),
            batch=batch,
            logits=accumulator.model.logits,
            vocabulary=accumulator.vocabulary,
            topic=term.topic,
            reference_hidden=self._reference_hidden.pop(item.place, None),
            reference_logits=None if reference_model is None else reference_model.logits,
        )
        value = _one_number(term.loss(inputs), term, inputs.hidden.requires_grad)
        if accumulator.ranks.tensor_rank == 0:
            self.sums[item.term] += value.detach().double()
        weighted = value * (self.weights[item.term] / self._units[item.term])
        if self._adapt is not None and item.term == len(self._terms) - 1:
            self.weights[item.term] = self._adapt(self._mean_over_data_ranks(value, item))
        return weighted, torch.zeros((), dtype=torch.int), {}

    def _mean_over_data_ranks(self, value: Tensor, item: _Item) -> float:
        """The mean loss of the micro-batches that data-parallel ranks work on at the same time; one all-reduce."""
        units = self._terms[item.term].units_of(item.rows)
        sums = torch.stack([value.detach().double(), value.new_tensor(units, dtype=torch.float64)])
        sum_over_data_ranks(sums, self._accumulator.ranks)
        return float(sums[0] / sums[1].clamp(min=1))


def _one_number(value: Any, term: LossTerm, has_gradient: bool) -> Tensor:
    """What a loss returned, if it can be summed up and descended along.

    Raises:
        TypeError: It is no number, several numbers, or a number that no weight has a gradient of though
            ``has_gradient`` says that there is one.
    """
    if not isinstance(value, Tensor):
        given = f"{value!r:.60}"
    elif value.ndim:
        given = f"a tensor of shape {list(value.shape)}"
    elif has_gradient and not value.requires_grad:
        given = "a number without a gradient"
    else:
        return value
    allowed = "one number with a gradient, the sum over the micro-batch's units"
    raise TypeError(f"{term.name}: {term.loss.name!r} returned {given}; allowed: {allowed}")
