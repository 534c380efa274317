"""Whether an unlearned model has collapsed: does it still predict retained text better than a uniform guess?"""

from __future__ import annotations

import math

from megatron_ext.losses.nll import NLL
from megatron_ext.training.accumulator import GradientAccumulator
from megatron_ext.training.loss_terms import LossTerm
from megatron_ext.training.topics import TopicData


class CollapseCheck:
    """The retain negative log-likelihood of one fixed batch: the first ``rows`` rows of a topic's retain set."""

    def __init__(self, accumulator: GradientAccumulator, topic: TopicData, rows: int) -> None:
        first = list(range(min(len(topic.retain), rows)))
        self._term, self._accumulator = LossTerm("retain_nll", NLL(), topic.retain_dataset, first), accumulator
        self._bound = math.log(accumulator.model.hf_config["vocab_size"])

    def measure(self) -> float:
        """Take the batch's loss: one forward pass. Collective over all ranks.

        Returns:
            Nats a token.

        Raises:
            NonFinite: The model gives NaN; on every rank.
        """
        return self._accumulator.mean_loss(self._term)

    def collapsed(self, nll: float) -> bool:
        """Whether the model predicts retained text no better than a uniform guess over the vocabulary."""
        return not nll < self._bound

    def describe(self, nll: float) -> str:
        """A sentence for the step's note."""
        return f"retained text costs {nll:.3g} nats a token, a uniform guess {self._bound:.3g}"
