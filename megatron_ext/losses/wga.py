"""Weighted gradient ascent: tokens that are forgotten already weigh less."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class WGA(Loss):
    """``mean_t w_t log p(y_t | y_<t)`` with ``w_t = p(y_t | y_<t)^beta``, through which no gradient flows, over the
    labelled tokens of the global batch (Rethinking LLM Unlearning Objectives, arXiv 2502.19301, WGA)."""

    name: Literal["wga"] = "wga"
    unit: ClassVar[Literal["token"]] = "token"

    beta: float = Field(1.0, ge=0, description="exponent of the weight; at 0 the loss is gradient ascent")

    def __call__(self, inputs: LossInputs) -> Tensor:
        weights_N = (self.beta * inputs.log_probs.detach()).exp()
        return (weights_N * inputs.log_probs).sum()
