"""Logit-margin flattening: the forget loss of PDU, which makes the model's distribution uniform."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.config import Positions
from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class LogitMargin(Loss):
    """``mean_b (1/n_b) sum_t (max_v z_tv - mean_v z_tv)^2`` over each sequence's ``n_b`` positions (PDU, arXiv
    2506.05314).

    The defaults are the paper's form. ``mask: labelled`` with ``reduction: token`` is open-unlearning's: it leaves out
    the position that predicts the first labelled token, takes the one after the last, and weighs long sequences more.
    """

    name: Literal["logit-margin"] = "logit-margin"
    unit: ClassVar[Literal["sequence"]] = "sequence"

    mask: Literal["predicting", "labelled"] = Field(
        "predicting", description="positions that predict a labelled token, or those whose own token is labelled"
    )
    reduction: Literal["sequence", "token"] = Field(
        "sequence", description="mean over a sequence, then over sequences; or over all tokens of the global batch"
    )

    @property
    def input_positions(self) -> Positions:
        return self.mask

    def units(self, labels: np.ndarray, lengths: np.ndarray) -> int:
        return int(labels.sum()) if self.reduction == "token" else len(labels)

    def __call__(self, inputs: LossInputs) -> Tensor:
        squares_N = inputs.at_each_position(lambda part: part.vocabulary.margin(part.logits)) ** 2
        if self.reduction == "token":
            return squares_N.sum()
        return (inputs.per_sequence(squares_N) / inputs.counts).sum()
