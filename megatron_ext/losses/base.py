"""What a loss is: a sum over tokens or over sequences, so that its mean can be taken over the GLOBAL batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_ext.schema import Named

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.scores import Scores


class Loss(Named):
    """A differentiable function of a micro-batch's scores.

    Losses see the scores of labelled tokens only and never a rank: collectives over vocabulary shards happen where the
    scores are made. Files here import torch inside functions, because plans are checked where torch is not installed.

    ``unit`` says what ``__call__`` sums over; the caller divides by the number of those units in the global batch.
    """

    name: str
    unit: ClassVar[Literal["token", "sequence"]]
    needs_reference: ClassVar[bool] = False

    def __call__(self, scores: Scores) -> Tensor:
        """The sum over the micro-batch's units: a scalar, fp32, to be minimised."""
        raise TypeError(f"{type(self).__name__} is abstract")
