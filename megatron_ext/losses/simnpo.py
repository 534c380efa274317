"""SimNPO: negative preference optimisation without a reference model, on length-normalised log-likelihoods."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class SimNPO(Loss):
    """``mean_b -(2/beta) log sigmoid(beta * (S_b / n_b - delta))`` with ``S_b`` the negative log-likelihood of the
    sequence's ``n_b`` labelled tokens (SimNPO, arXiv 2410.07163, eq. 5, whose margin is ``alpha = beta * delta``)."""

    name: Literal["simnpo"] = "simnpo"
    unit: ClassVar[Literal["sequence"]] = "sequence"

    beta: float = Field(4.5, gt=0, description="inverse temperature")
    delta: float = Field(0.0, ge=0, description="margin in nats a token; the paper's alpha is beta * delta")

    def __call__(self, inputs: LossInputs) -> Tensor:
        from torch.nn.functional import softplus

        margin_B = -inputs.sequence_log_probs / inputs.counts - self.delta
        losses_B = softplus(-self.beta * margin_B) * (2 / self.beta)
        return losses_B[inputs.real].sum()
