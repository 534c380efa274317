"""Probabilities of answers, as open-unlearning defines them (``evaluate_probability``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

EPSILON = 1e-10
LARGEST = 700.0  # whose exponential is still a number


def probability(avg_loss: float) -> float:
    """Length-normalised probability: ``exp(-avg_loss)``, the geometric mean over the answer's tokens.

    ``avg_loss`` is the negative log-probability in nats per token, end token included.
    """
    return math.exp(-avg_loss)


def normalised_probability(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """Share of the correct answer: ``P(a) / (P(a) + sum_j P(wrong_j) + 1e-10)``, each P length-normalised."""
    correct = probability(correct_loss)
    return correct / (correct + math.fsum(map(probability, wrong_losses)) + EPSILON)


def share(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """``P(a) / (P(a) + sum_j P(wrong_j))``, as TOFU's ``get_model_utility`` (``utils.py``) has it."""
    return 1 / (1 + math.fsum(math.exp(min(correct_loss - loss, LARGEST)) for loss in wrong_losses))
