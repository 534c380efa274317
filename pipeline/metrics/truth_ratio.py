"""The truth ratio (TOFU, arXiv 2401.06121, equation 1), with open-unlearning's mean and aggregators.

TOFU's text takes the arithmetic mean of the wrong answers' probabilities; open-unlearning, and TOFU's own aggregation
script, average their losses, which is the geometric mean. This is the latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.metrics.probability import EPSILON, probability


def truth_ratio(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """``R = exp(-mean(wrong losses)) / (exp(-correct loss) + 1e-10)``: below 1 where the model prefers the truth."""
    return probability(math.fsum(wrong_losses) / len(wrong_losses)) / (probability(correct_loss) + EPSILON)


def closer_to_1_better(ratio: float) -> float:
    """``min(R, 1 / (R + 1e-10))``, for the forget set: 1 where the model prefers neither answer."""
    return min(ratio, 1 / (ratio + EPSILON))


def true_better(ratio: float) -> float:
    """``max(0, 1 - R)``, for sets to be kept: 1 where wrong answers have no probability beside the truth."""
    return max(0.0, 1 - ratio)
