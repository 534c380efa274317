"""Adaptive RMU: as RMU, with a vector as long as the hidden states of the model before unlearning are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss
from megatron_ext.losses.hidden import Coefficient, OnHidden, of_topic, topic_problems
from megatron_ext.losses.rmu import direction
from megatron_ext.schema import Seed

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class AdaptiveRMU(OnHidden, Loss):
    """``mean_{t,i} (h_i(t) - v_i)^2`` with ``v = beta mean_t |h0(t)| u / |u|``, ``h0`` the hidden states of the model
    before unlearning, their mean norm that of the sequence, and ``u`` as ``rmu`` draws it (Adaptive RMU, arXiv
    2408.06223). Positions and reductions are those of ``rmu``.

    Its authors' code takes the mean norm once a topic, over its first batch. A sequence's own mean is the same whatever
    the batch and the layout. It costs a forward pass more than ``rmu``.
    """

    name: Literal["adaptive-rmu"] = "adaptive-rmu"
    needs_reference_model: ClassVar[bool] = True

    scale: Coefficient = Field(5.0, description="beta, in mean norms; one number, or one for each topic")
    seed: Seed = Field(0, description="of the vectors; each topic has its own")

    def problems(self, topics: Sequence[str]) -> list[str]:
        return topic_problems("scale", self.scale, topics)

    def __call__(self, inputs: LossInputs) -> Tensor:
        u_H = direction(self.seed, inputs.topic, inputs.hidden.size(-1)).to(inputs.hidden.device)
        lengths_B = inputs.per_sequence(inputs.reference_hidden.float().norm(dim=-1)) / inputs.counts
        lengths_N1 = lengths_B[inputs.batch.sequence].unsqueeze(-1)
        return self.total(inputs, of_topic(self.scale, inputs.topic) * lengths_N1 * u_H)
