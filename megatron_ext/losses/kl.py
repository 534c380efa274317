"""KL divergence from the model before unlearning: a retain loss that holds the whole distribution in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.config import Positions
from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class KL(Loss):
    """``mean_t KL(p_ref(. | y_<t) || p(. | y_<t))`` over the labelled tokens of the global batch, or over all positions
    (TOFU, arXiv 2401.06121, KL minimisation).

    The code of TOFU and open-unlearning averages over all positions, and over padding too.
    """

    name: Literal["kl"] = "kl"
    unit: ClassVar[Literal["token"]] = "token"
    needs_reference_model: ClassVar[bool] = True

    positions: Literal["labelled", "all"] = Field(
        "labelled", description="compare the distributions that predict a labelled token, or those after every token"
    )

    @property
    def input_positions(self) -> Positions:
        return "predicting" if self.positions == "labelled" else "all"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return inputs.at_each_position(lambda part: part.vocabulary.kl(part.reference_logits, part.logits)).sum()
