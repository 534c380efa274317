"""RMU's retain loss: keep the hidden states of the retain set where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss
from megatron_ext.losses.hidden import Coefficient, OnHidden, of_topic, topic_problems

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class RMURetain(OnHidden, Loss):
    """``alpha mean_{t,i} (h_i(t) - h0_i(t))^2``, ``h0`` the hidden states of the model before unlearning (RMU, arXiv
    2403.03218, section 4; BLUR, arXiv 2506.08164, eq. 20a). Positions and reductions are those of ``rmu``.

    Costs a forward pass more than the loss itself, and a copy of the matrices that are trained.
    """

    name: Literal["rmu-retain"] = "rmu-retain"
    needs_reference_model: ClassVar[bool] = True

    weight: Coefficient = Field(1.0, description="alpha; one number, or one for each topic")

    def problems(self, topics: Sequence[str]) -> list[str]:
        return topic_problems("weight", self.weight, topics)

    def __call__(self, inputs: LossInputs) -> Tensor:
        return of_topic(self.weight, inputs.topic) * self.total(inputs, inputs.reference_hidden)
