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
        teacher_NV = inputs.vocabulary.shifted_at(inputs.logits.detach(), inputs.targets, float("-inf"))
        entropy_N = inputs.vocabulary.soft_cross_entropy(teacher_NV, inputs.logits)
        return entropy_N[~inputs.first].sum()
