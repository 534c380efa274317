"""Negative log-likelihood: the retain loss of most methods, and the loss of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class NLL(Loss):
    """``-mean_t log p(y_t | y_<t)`` over the labelled tokens of the global batch (BLUR, arXiv 2506.08164, eq. 2)."""

    name: Literal["nll"] = "nll"
    unit: ClassVar[Literal["token"]] = "token"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return -inputs.log_probs.sum()
