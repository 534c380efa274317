"""CE-U: cross-entropy to the model's own distribution without the labelled token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class CEU(Loss):
    """``mean_t -sum_v q_v log p_v`` with ``q = softmax(z, z_y = -inf)``, through which no gradient flows, over the
    labelled tokens of the global batch but each sequence's first (CE-U, arXiv 2503.01224)."""

    name: Literal["ce-u"] = "ce-u"
    unit: ClassVar[Literal["token"]] = "token"

    def units(self, labels: np.ndarray, lengths: np.ndarray) -> int:
        return int((labels - 1).sum())

    def __call__(self, inputs: LossInputs) -> Tensor:
        return inputs.at_each_position(_cross_entropy)[~inputs.first].sum()


def _cross_entropy(part: LossInputs) -> Tensor:
    teacher_NV = part.vocabulary.shifted_at(part.logits.detach(), part.targets, float("-inf"))
    return part.vocabulary.soft_cross_entropy(teacher_NV, part.logits)
