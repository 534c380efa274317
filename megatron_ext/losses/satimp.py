"""SatImp: gradient ascent with weights by saturation (how far a token is forgotten) and importance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class SatImp(Loss):
    """``mean_t w_t log p_t`` with ``w_t = p_t^beta1 (1 - p_t)^beta2``, through which no gradient flows, ``p_t`` the
    probability of a labelled token, over those of the global batch (SatImp, arXiv 2505.11953)."""

    name: Literal["satimp"] = "satimp"
    unit: ClassVar[Literal["token"]] = "token"

    beta1: float = Field(5.0, ge=0, description="exponent of p")
    beta2: float = Field(1.0, ge=0, description="exponent of 1 - p")

    def __call__(self, inputs: LossInputs) -> Tensor:
        fixed_N = inputs.log_probs.detach()
        # 1 - p, exact also where p is close to 1
        weights_N = (self.beta1 * fixed_N).exp() * (-fixed_N.expm1()) ** self.beta2
        return (weights_N * inputs.log_probs).sum()
