"""Probabilities of answers, as open-unlearning defines them (``evaluate_probability``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

EPSILON = 1e-10


def probability(avg_loss: float) -> float:
    """Length-normalised probability: ``exp(-avg_loss)``, the geometric mean over the answer's tokens.

    ``avg_loss`` is the negative log-probability in nats per token, end token included.
    """
    return math.exp(-avg_loss)


def normalised_probability(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """Share of the correct answer: ``P(a) / (P(a) + sum_j P(wrong_j) + 1e-10)``, each P length-normalised."""
    correct = probability(correct_loss)
    return correct / (correct + math.fsum(map(probability, wrong_losses)) + EPSILON)
