"""What SimNPO's code for MUSE computes in the place of SimNPO: it pushes raw logits down, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.config import Positions
from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class SimNPOMuseLogits(Loss):
    """``(2/beta) mean_{t,v} -log sigmoid(beta * (-z - delta)_tv)`` over all positions of the global batch and the whole
    vocabulary.

    Not SimNPO: it reads no label and no length, only logits. It is the loss of its authors' code for MUSE
    (OPTML-Group/Unlearn-Simple at ec7be0c, ``MUSE/baselines/baselines/iterative.py``), whose batches hold no padding,
    and BLUR's published MUSE figures of SimNPO were made with it.
    """

    name: Literal["simnpo-muse-logits"] = "simnpo-muse-logits"
    unit: ClassVar[Literal["token"]] = "token"

    beta: float = Field(0.7, gt=0, description="inverse temperature")
    delta: float = Field(0.0, ge=0, description="margin of a logit; the code calls it gamma")

    @property
    def input_positions(self) -> Positions:
        return "all"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return inputs.at_each_position(self._mean_over_vocabulary).sum() * (2 / self.beta)

    def _mean_over_vocabulary(self, part: LossInputs) -> Tensor:
        from torch.nn.functional import softplus

        shards = part.vocabulary
        logits_NV = shards.real(part.logits).float()
        return shards.sum(softplus(self.beta * (logits_NV + self.delta))) / shards.size
