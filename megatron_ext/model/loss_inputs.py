"""What a loss sees of a micro-batch: hidden states, logits and log-probabilities at its positions."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_ext.data.collate import MicroBatch
from megatron_ext.distributed.vocab_parallel import VocabularyShards

if TYPE_CHECKING:
    from megatron_ext.model.build import LanguageModel


class LossInputs:
    """Lazily made from the hidden states at the loss's ``n`` positions; equal on every tensor-parallel rank, except
    that ``logits`` and ``reference_logits`` are this rank's vocabulary shard ``[n, v / tp]``, -inf in padding columns.

    A property that a loss does not read is never computed. ``hidden`` ``[n, h]``; ``reference_hidden`` ``[n, h]``, the
    same of the model before unlearning, without gradient, for losses that need it. ``vocabulary``: functions of logits
    over all shards. ``topic``: the name of the batch's topic.
    """

    def __init__(
        self,
        hidden: Tensor,
        batch: MicroBatch,
        model: LanguageModel,
        vocabulary: VocabularyShards,
        topic: str = "",
        reference_hidden: Tensor | None = None,
        reference_model: LanguageModel | None = None,
    ) -> None:
        self.hidden, self.batch, self.vocabulary, self.topic = hidden, batch, vocabulary, topic
        self._model, self._reference_hidden, self._reference_model = model, reference_hidden, reference_model

    @cached_property
    def logits(self) -> Tensor:
        return self._model.logits(self.hidden)

    @cached_property
    def log_probs(self) -> Tensor:
        """fp32 ``[n]``: log-probability of each labelled token. All-reduces over the tensor-parallel ranks."""
        return self.vocabulary.target_log_probs(self.logits, self.targets)

    @cached_property
    def sequence_log_probs(self) -> Tensor:
        """fp32 ``[b]``: sum over each sequence's labelled tokens; 0 for rows that only fill the batch."""
        return self.per_sequence(self.log_probs)

    def per_sequence(self, values: Tensor) -> Tensor:
        """``[b]``: sums of ``values`` ``[n]`` over each sequence's positions."""
        return values.new_zeros(len(self.batch.real)).index_add(0, self.batch.sequence, values)

    @cached_property
    def counts(self) -> Tensor:
        """fp32 ``[b]``: positions of each sequence, at least 1, so that it can be divided by."""
        ones = torch.ones_like(self.batch.sequence, dtype=torch.float32)
        return self.per_sequence(ones).clamp(min=1)

    @cached_property
    def first(self) -> Tensor:
        """bool ``[n]``: the first position of each sequence."""
        sequence = self.batch.sequence
        return torch.cat([sequence.new_ones(1, dtype=torch.bool), sequence[1:] != sequence[:-1]])[: len(sequence)]

    @property
    def targets(self) -> Tensor:
        """int64 ``[n]``: the token that each position predicts."""
        return self.batch.targets

    @property
    def real(self) -> Tensor:
        """bool ``[b]``: rows that are sequences, not filling."""
        return self.batch.real

    @property
    def reference_logps(self) -> Tensor:
        """fp32 ``[b]``: each sequence's log-probability under the model before unlearning."""
        if self.batch.reference_logps is None:
            raise ValueError("this loss needs reference log-probabilities, and the run has none")
        return self.batch.reference_logps

    @property
    def reference_hidden(self) -> Tensor:
        if self._reference_hidden is None:
            raise ValueError("this loss needs the model before unlearning, and the run has none")
        return self._reference_hidden

    @cached_property
    def reference_logits(self) -> Tensor:
        if self._reference_model is None:
            raise ValueError("this loss needs the logits of the model before unlearning, and the run has none")
        with torch.no_grad():
            return self._reference_model.logits(self.reference_hidden)
