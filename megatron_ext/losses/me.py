"""Maximum entropy: every token is to be as probable as any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class ME(Loss):
    """``mean_t KL(uniform || p_t)`` over the labelled tokens of the global batch (ME of ME+GD, A Closer Look at Machine
    Unlearning for LLMs, arXiv 2410.08109).

    Its authors' code adds 1e-12 to every probability, which bounds a token's part of the loss; nothing is added here.
    """

    name: Literal["me"] = "me"
    unit: ClassVar[Literal["token"]] = "token"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return inputs.at_each_position(lambda part: part.vocabulary.kl_from_uniform(part.logits)).sum()
