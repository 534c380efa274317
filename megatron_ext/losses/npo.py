"""Negative preference optimisation against log-probabilities of the target model that were computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class NPO(Loss):
    """``mean_b (2/beta) log(1 + exp(beta * rho_b))`` with ``rho_b = log p(y_b) - log p_ref(y_b)``, both sums over the
    sequence's labelled tokens, not divided by its length (NPO, arXiv 2404.05868, eq. 3; BLUR, eq. 4)."""

    name: Literal["npo"] = "npo"
    unit: ClassVar[Literal["sequence"]] = "sequence"
    needs_reference_logps: ClassVar[bool] = True

    beta: float = Field(0.1, gt=0, description="inverse temperature; towards 0 the loss becomes gradient ascent")

    def __call__(self, inputs: LossInputs) -> Tensor:
        from torch.nn.functional import softplus

        rho_B = inputs.sequence_log_probs - inputs.reference_logps
        losses_B = softplus(self.beta * rho_B) * (2 / self.beta)
        return losses_B[inputs.real].sum()
