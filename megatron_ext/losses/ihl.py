"""Inverted hinge: the labelled token is to be less probable than the most probable of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class IHL(Loss):
    """``mean_t [1 + p(y_t) - max_{v != y_t} p(v)]`` over the labelled tokens of the global batch, between 0 and 2
    (inverted hinge loss of LoKU, arXiv 2408.06621).

    Its authors train LoRA matrices that they initialise by importance; here all weights are trained.
    """

    name: Literal["ihl"] = "ihl"
    unit: ClassVar[Literal["token"]] = "token"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return inputs.at_each_position(
            lambda part: 1 + part.vocabulary.probability_margin(part.logits, part.targets)
        ).sum()
