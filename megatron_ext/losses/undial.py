"""UNDIAL: self-distillation from the model before unlearning, with the labelled token's logit lowered."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class Undial(Loss):
    """``mean_t -sum_v q_v log p_v`` with ``q = softmax(z_ref - beta e_y)``, ``e_y`` 1 at the labelled token, over those
    of the global batch (UNDIAL, arXiv 2402.10052).

    open-unlearning's code averages over prompt and padding positions too, where the teacher is the reference with an
    unrelated logit lowered.
    """

    name: Literal["undial"] = "undial"
    unit: ClassVar[Literal["token"]] = "token"
    needs_reference_model: ClassVar[bool] = True

    beta: float = Field(10.0, gt=0, description="how far the labelled token's logit is lowered")

    def __call__(self, inputs: LossInputs) -> Tensor:
        return inputs.at_each_position(self._cross_entropy).sum()

    def _cross_entropy(self, part: LossInputs) -> Tensor:
        teacher_NV = part.vocabulary.shifted_at(part.reference_logits, part.targets, -self.beta)
        return part.vocabulary.soft_cross_entropy(teacher_NV, part.logits)
