"""What a loss sees of a micro-batch: scores of its labelled tokens, over the whole vocabulary."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_ext.batches import MicroBatch
from megatron_ext.vocab_parallel import target_log_probs


class Scores:
    """Lazily made from the labelled positions' logits ``[n, v / tp]``; equal on every tensor-parallel rank.

    A property that a loss does not read is never computed.
    """

    def __init__(self, logits: Tensor, batch: MicroBatch, tensor_group: ProcessGroup) -> None:
        self.logits, self.batch, self._group = logits, batch, tensor_group

    @cached_property
    def log_probs(self) -> Tensor:
        """fp32 ``[n]``: log-probability of each labelled token. All-reduces over the tensor-parallel ranks."""
        return target_log_probs(self.logits, self.batch.targets, self._group)

    @cached_property
    def sequence_log_probs(self) -> Tensor:
        """fp32 ``[b]``: sum over each sequence's labelled tokens; 0 for rows that only fill the batch."""
        return self.log_probs.new_zeros(len(self.batch.real)).index_add(0, self.batch.sequence, self.log_probs)

    @property
    def real(self) -> Tensor:
        """bool ``[b]``: rows that are sequences, not filling."""
        return self.batch.real

    @property
    def reference(self) -> Tensor:
        """fp32 ``[b]``: each sequence's log-probability under the model before unlearning."""
        if self.batch.reference is None:
            raise ValueError("this loss needs reference log-probabilities, and the run has none")
        return self.batch.reference
