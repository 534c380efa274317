"""Direct preference optimisation for unlearning: another answer is preferred to the one to be forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class DPO(Loss):
    """``mean_b -(2/beta) log sigmoid(beta * (rho_b^w - rho_b^l))``, ``rho = log p(y) - log p_ref(y)`` over an answer's
    labelled tokens, of the preferred answer (w) and of the forget set's (l).

    DPO (arXiv 2305.18290, eq. 7) as TOFU (arXiv 2401.06121) applies it to forgetting, there with refusals
    as the preferred answers. The factor ``2/beta`` is NPO's and open-unlearning's; neither paper has it.
    """

    name: Literal["dpo"] = "dpo"
    unit: ClassVar[Literal["sequence"]] = "sequence"
    needs_reference_logps: ClassVar[bool] = True
    needs_preferred_answers: ClassVar[bool] = True

    beta: float = Field(0.1, gt=0, description="inverse temperature")

    def __call__(self, inputs: LossInputs) -> Tensor:
        from torch.nn.functional import softplus

        # The micro-batch holds the forget rows, then as many preferred answers.
        rejected_B, chosen_B = (inputs.sequence_log_probs - inputs.reference_logps).chunk(2)
        real_B, _ = inputs.real.chunk(2)
        losses_B = softplus(-self.beta * (chosen_B - rejected_B)) * (2 / self.beta)
        return losses_B[real_B].sum()
