"""The truth ratio (TOFU, arXiv 2401.06121, equation 1), with open-unlearning's mean and aggregators.

open-unlearning averages the wrong answers' losses, which is the geometric mean of their probabilities; so does TOFU's
own code for forget quality. For model utility that code takes the arithmetic mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.metrics.probability import EPSILON, LARGEST, probability


def truth_ratio(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """``R = exp(-mean(wrong losses)) / (exp(-correct loss) + 1e-10)``: below 1 where the model prefers the truth."""
    return probability(math.fsum(wrong_losses) / len(wrong_losses)) / (probability(correct_loss) + EPSILON)


def arithmetic_truth_ratio(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """``mean_j exp(-wrong loss_j) / exp(-correct loss)``, as TOFU's ``get_model_utility`` (``utils.py``) has it; ratios
    beyond the largest number count as ``exp(700)``."""
    return math.fsum(math.exp(min(correct_loss - loss, LARGEST)) for loss in wrong_losses) / len(wrong_losses)


def closer_to_1_better(ratio: float) -> float:
    """``min(R, 1 / (R + 1e-10))``, for the forget set: 1 where the model prefers neither answer."""
    return min(ratio, 1 / (ratio + EPSILON))


def true_better(ratio: float) -> float:
    """``max(0, 1 - R)``, for sets to be kept: 1 where wrong answers have no probability beside the truth."""
    return max(0.0, 1 - ratio)


def prob_mean(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """``c / (c + w + 1e-10)``: ``c`` the correct answer's probability, ``w`` the geometric mean of the wrong ones'. 0.5
    where the model prefers neither, 1 where wrong answers have no probability beside the truth."""
    correct, wrong = probability(correct_loss), probability(math.fsum(wrong_losses) / len(wrong_losses))
    return correct / (correct + wrong + EPSILON)
