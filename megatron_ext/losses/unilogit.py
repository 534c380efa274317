"""Unilogit: self-distillation towards a distribution in which the labelled token is as probable as a random one."""

from __future__ import annotations

from math import log, log1p
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class Unilogit(Loss):
    """``mean_t KL(p_t || q_t)``, or ``KL(q_t || p_t)``, over the labelled tokens of the global batch, with ``q_t`` the
    model's own distribution, through which no gradient flows, in which ``z_y := log sum_{v != y} exp z_v - log(V - 1)``
    (Unilogit, arXiv 2505.06027).

    That logit gives the label the probability ``1 / V`` and leaves the others in proportion. So each divergence is the
    one between two distributions of two outcomes, the label or another token, ``(p_y, 1 - p_y)`` and ``(1/V, 1 -
    1/V)``, and so is its gradient: a distribution over the vocabulary is never made. Where ``p_y`` rounds to 1, both
    gradients are zero.
    """

    name: Literal["unilogit"] = "unilogit"
    unit: ClassVar[Literal["token"]] = "token"

    divergence: Literal["reverse", "forward"] = Field("reverse", description="KL(p || q), the paper's, or KL(q || p)")

    def __call__(self, inputs: LossInputs) -> Tensor:
        import torch

        size = inputs.vocabulary.size
        known_N = inputs.log_probs
        label_N = known_N.clamp(max=-torch.finfo(known_N.dtype).eps)  # below a probability of 1, whose logarithm ends
        other_N = (-label_N.expm1()).log()
        above_N, beside_N = label_N + log(size), other_N - log1p(-1 / size)  # log p/q of the label and of the others
        if self.divergence == "reverse":
            return (label_N.exp() * above_N + other_N.exp() * beside_N).sum()
        return -(above_N / size + beside_N * (1 - 1 / size)).sum()
