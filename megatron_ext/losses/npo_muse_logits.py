"""What MUSE's code computes in the place of NPO: a comparison of raw logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from megatron_ext.config import Positions
from megatron_ext.losses.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs


class NPOMuseLogits(Loss):
    """``(2/beta) mean_{t,v} -log sigmoid(beta * (z_ref - z)_tv)`` over all positions of the global batch, or those that
    predict a labelled token, and the whole vocabulary.

    Not NPO: it compares logits, not log-probabilities of the labelled tokens, so that it pushes every logit down. It is
    the loss of MUSE's code (arXiv 2407.06460), whose batches hold no padding, and BLUR's published MUSE figures were
    made with it.
    """

    name: Literal["npo-muse-logits"] = "npo-muse-logits"
    unit: ClassVar[Literal["token"]] = "token"
    needs_reference_model: ClassVar[bool] = True

    beta: float = Field(0.1, gt=0, description="inverse temperature")
    positions: Literal["labelled", "all"] = Field(
        "all", description="compare the logits that predict a labelled token, or those after every token"
    )

    @property
    def input_positions(self) -> Positions:
        return "predicting" if self.positions == "labelled" else "all"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return inputs.at_each_position(self._mean_over_vocabulary).sum() * (2 / self.beta)

    def _mean_over_vocabulary(self, part: LossInputs) -> Tensor:
        from torch.nn.functional import softplus

        shards = part.vocabulary
        change_NV = shards.real(part.logits).float() - shards.real(part.reference_logits)
        return shards.sum(softplus(self.beta * change_NV)) / shards.size
