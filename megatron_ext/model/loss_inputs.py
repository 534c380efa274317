"""What a loss sees of a micro-batch: hidden states, logits and log-probabilities at its positions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_ext.data.collate import MicroBatch
from megatron_ext.distributed.vocab_parallel import VocabularyShards

# Logits of a micro-batch that exist at a time, on each rank: 1 GiB in fp32, a function of them holds as much again.
LOGITS = 1 << 28


class LossInputs:
    """What a loss can read, made from the hidden states at its ``N`` positions when it is read.

    A property that a loss does not read is never computed. Where a loss reads logits by ``at_each_position``, as
    ``log_probs`` does, there need not be room for those of a whole micro-batch. All are equal on every tensor-parallel
    rank, except that ``logits`` and ``reference_logits`` are this rank's columns of the vocabulary.

    Attributes:
        hidden: ``[N, H]``, hidden states of the last stage.
        batch: The micro-batch.
        vocabulary: Functions of logits over all shards of the vocabulary.
        topic: The name of the batch's topic.
    """

    def __init__(
        self,
        hidden: Tensor,
        batch: MicroBatch,
        logits: Callable[[Tensor], Tensor],
        vocabulary: VocabularyShards,
        topic: str = "",
        reference_hidden: Tensor | None = None,
        reference_logits: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Hold what the properties are made of.

        Args:
            hidden: ``[N, H]``.
            batch: The micro-batch, with ``N`` positions.
            logits: From hidden states ``[N, H]`` to logits ``[N, V]``, -inf in columns that pad the vocabulary.
            vocabulary: Functions of such logits.
            topic: The name of the batch's topic.
            reference_hidden: ``[N, H]`` of the model before unlearning, without gradient, where a loss needs it.
            reference_logits: As ``logits``, of the model before unlearning.
        """
        self.hidden, self.batch, self.vocabulary, self.topic = hidden, batch, vocabulary, topic
        self._logits_of, self._reference_hidden, self._reference_logits_of = logits, reference_hidden, reference_logits

    @cached_property
    def logits(self) -> Tensor:
        """``[N, V]``, this rank's columns; -inf in those that pad the vocabulary."""
        return self._logits_of(self.hidden)

    @cached_property
    def log_probs(self) -> Tensor:
        """fp32 ``[N]``: log-probability of each labelled token. All-reduces over the tensor-parallel ranks."""
        return self.at_each_position(lambda part: part.vocabulary.target_log_probs(part.logits, part.targets))

    def at_each_position(self, function: Callable[[LossInputs], Tensor]) -> Tensor:
        """A function of each position's logits, with at most ``LOGITS`` of them at a time.

        More positions are taken in parts, whose logits are made once more for the backward pass; the function's
        collectives are then repeated there too. Weights' gradients are then sums over parts, in the weights' dtype.

        Args:
            function: Maps inputs with ``n`` of the positions, of which it reads what belongs to a position (hidden
                states, logits, targets), to ``[n]``.

        Returns:
            ``[N]``.
        """
        columns = math.ceil(self.vocabulary.size / self.vocabulary.group.size())
        size = max(1, LOGITS // columns)
        if len(self.targets) <= size:
            return function(self)
        parts = [slice(begin, begin + size) for begin in range(0, len(self.targets), size)]

        def value(hidden: Tensor, part: slice) -> Tensor:
            return function(self._part(hidden, part))

        values = [checkpoint(value, self.hidden[part], part, use_reentrant=False) for part in parts]
        return torch.cat(values)

    def _part(self, hidden: Tensor, part: slice) -> LossInputs:
        """The same for a part of the positions, whose hidden states are given."""
        batch, before = self.batch, self._reference_hidden
        batch = dataclasses.replace(
            batch, index=batch.index[part], targets=batch.targets[part], sequence=batch.sequence[part]
        )
        before = None if before is None else before[part]
        return LossInputs(
            hidden, batch, self._logits_of, self.vocabulary, self.topic, before, self._reference_logits_of
        )

    @cached_property
    def sequence_log_probs(self) -> Tensor:
        """fp32 ``[B]``: sum over each sequence's labelled tokens; 0 for rows that only fill the batch."""
        return self.per_sequence(self.log_probs)

    def per_sequence(self, values_N: Tensor) -> Tensor:
        """``[B]``: sums of values over each sequence's positions."""
        return values_N.new_zeros(len(self.batch.real)).index_add(0, self.batch.sequence, values_N)

    @cached_property
    def counts(self) -> Tensor:
        """fp32 ``[B]``: positions of each sequence, at least 1, so that it can be divided by."""
        ones_N = torch.ones_like(self.batch.sequence, dtype=torch.float32)
        return self.per_sequence(ones_N).clamp(min=1)

    @cached_property
    def first(self) -> Tensor:
        """bool ``[N]``: the first position of each sequence."""
        sequence_N = self.batch.sequence
        begins = sequence_N.new_ones(1, dtype=torch.bool)
        return torch.cat([begins, sequence_N[1:] != sequence_N[:-1]])[: len(sequence_N)]

    @property
    def targets(self) -> Tensor:
        """int64 ``[N]``: the token that each position predicts."""
        return self.batch.targets

    @property
    def real(self) -> Tensor:
        """bool ``[B]``: rows that are sequences, not filling."""
        return self.batch.real

    @property
    def reference_logps(self) -> Tensor:
        """fp32 ``[B]``: each sequence's log-probability under the model before unlearning.

        Raises:
            ValueError: The run has none.
        """
        if self.batch.reference_logps is None:
            raise ValueError("this loss needs reference log-probabilities, and the run has none")
        return self.batch.reference_logps

    @property
    def reference_hidden(self) -> Tensor:
        """``[N, H]``: hidden states of the model before unlearning, without gradient.

        Raises:
            ValueError: The run has none.
        """
        if self._reference_hidden is None:
            raise ValueError("this loss needs the model before unlearning, and the run has none")
        return self._reference_hidden

    @cached_property
    def reference_logits(self) -> Tensor:
        """Logits of the model before unlearning, without gradient; this rank's columns.

        Returns:
            ``[N, V]``.

        Raises:
            ValueError: The run has none.
        """
        if self._reference_logits_of is None:
            raise ValueError("this loss needs the logits of the model before unlearning, and the run has none")
        with torch.no_grad():
            return self._reference_logits_of(self.reference_hidden)
