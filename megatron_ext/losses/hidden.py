"""What the losses on hidden states share: which positions they see, what their mean is over, a coefficient a topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from megatron_ext.config import Positions
from megatron_ext.schema import Strict

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from megatron_ext.model.loss_inputs import LossInputs

Coefficient = Annotated[float, Field(gt=0)] | dict[str, Annotated[float, Field(gt=0)]]


class OnHidden(Strict):
    """A mean of squared differences between hidden states ``[N, H]`` and what they are to be.

    The square is averaged over the hidden dimension, as in the code of both RMU's and BLUR's authors; their papers
    write a squared norm, ``H`` times as much. Coefficients from the literature belong to the average. (With the same
    factor on the forget and the retain loss, AdamW's steps do not see it, nor does the direction of BLUR's.)
    """

    unit: ClassVar[Literal["token", "sequence"]] = "token"
    sees: ClassVar[Literal["logits", "hidden"]] = "hidden"

    positions: Literal["all", "labelled"] = Field(
        "all", description="tokens whose hidden states are compared: every one of a sequence, or those with a label"
    )
    reduction: Literal["token", "sequence", "sums"] = Field(
        "token",
        description="mean over the batch's positions, over the means of its sequences, or of the sequences' sums times "
        "the mean of the inverses of their lengths",
    )

    @property
    def input_positions(self) -> Positions:
        return self.positions

    def units(self, labels: np.ndarray, lengths: np.ndarray) -> float:
        counts = lengths if self.positions == "all" else labels
        if self.reduction == "sequence":
            return len(labels)
        if self.reduction == "sums" and len(counts) and counts.min() > 0:
            return float(len(counts) / (1 / counts).mean())
        return int(counts.sum())

    def total(self, inputs: LossInputs, wanted: Tensor) -> Tensor:
        """The sum over units of the mean square of ``hidden - wanted``.

        Args:
            inputs: The micro-batch.
            wanted: What the hidden states are to be, ``[N, H]`` or ``[H]``.

        Returns:
            An fp32 scalar.
        """
        squares_N = (inputs.hidden.float() - wanted.float()).square().mean(dim=-1)
        if self.reduction != "sequence":
            return squares_N.sum()
        return (inputs.per_sequence(squares_N) / inputs.counts).sum()


def of_topic(coefficient: Coefficient, topic: str) -> float:
    """The coefficient itself, or the topic's own."""
    return coefficient[topic] if isinstance(coefficient, dict) else coefficient


def topic_problems(key: str, coefficient: Coefficient, topics: Sequence[str]) -> list[str]:
    """Where a coefficient for each topic is not one for each of ``topics``: messages that begin with ``key``."""
    if not isinstance(coefficient, dict):
        return []
    found = [f"{key}: has no value for the topic {topic!r}" for topic in topics if topic not in coefficient]
    found += [f"{key}: {name!r} is not a topic" for name in coefficient if name not in topics]
    return [f"{text}; the topics are {', '.join(map(repr, topics))}" for text in found]
