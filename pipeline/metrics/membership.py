"""Membership attacks: scores that tell texts a model was trained on from other texts, and how well they tell.

A text that the model was trained on is a member. Every score is lower where the attack takes the text for one.
``log_probs`` (nats), ``means`` and ``variances`` hold a number for each token of a text, as
``megatron_ext.inference.scoring.Tokenwise`` has them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

SPREAD = 1e-6  # least variance of Min-K++


def lowest(values: Sequence[float], share: float, at_least_one: bool = True) -> list[float]:
    """The lowest values, sorted.

    Args:
        values: all values
        share: share of them that is returned, their number rounded down
        at_least_one: whether one is returned, too, where that number is 0
    """
    count = int(share * len(values))
    return sorted(values)[: max(1, count) if at_least_one else count]


def min_k(log_probs: Sequence[float], share: float = 0.4) -> float:
    """Minus the mean of the lowest ``share`` of the tokens' log-probabilities (Min-K% Prob, arXiv 2310.16789)."""
    worst = lowest(log_probs, share)
    return -math.fsum(worst) / len(worst)


def min_k_plus_plus(
    log_probs: Sequence[float], means: Sequence[float], variances: Sequence[float], share: float = 0.4
) -> float:
    """As ``min_k``, of standardised log-probabilities (Min-K%++, arXiv 2404.02936).

    A log-probability is standardised by mean and variance of the model's distribution at its token; a variance under
    1e-6 counts as 1e-6.
    """
    rows = zip(log_probs, means, variances, strict=True)
    return min_k([(value - mean) / math.sqrt(max(spread, SPREAD)) for value, mean, spread in rows], share)


def zlib_ratio(avg_loss: float, text: str) -> float:
    """Loss in nats per token, divided by the number of bytes of the compressed text (Carlini et al. 2021)."""
    return avg_loss / len(zlib.compress(text.encode("utf-8")))


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The area under the ROC curve: the probability that one of ``others`` scores higher than one of ``members``.

    Ties count half. At 1 the scores tell all members, at 0.5 none.

    Raises:
        ValueError: there are no scores, or one is not finite
    """
    from scipy.stats import rankdata

    if not members or not others:
        raise ValueError(f"scores of {len(members)} members and {len(others)} others; at least one of each is needed")
    if not all(map(math.isfinite, (*members, *others))):
        raise ValueError("a score is not finite")
    ranks = rankdata([*others, *members])
    n = len(others)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(members)))


def priv_leak(value: float, retrain: float) -> float:
    """PrivLeak in percent: ``100 (a - r) / (r + 1e-10)`` with ``a = 1 - AUC`` of the model and ``r`` that of retrain.

    It is -100 where all members are told (too little is forgotten), 0 where the model is as retrain, and above 0 where
    members look less familiar than other texts (too much is forgotten).

    Args:
        value: ``auc`` of the model's Min-40% scores
        retrain: the same of retrain

    Source: MUSE (arXiv 2407.06460), section 4, with the AUC of open-unlearning. MUSE's own code ranks the other way
    round, so that its AUC is 1 minus this one.
    """
    return 100 * ((1 - value) - (1 - retrain)) / ((1 - retrain) + 1e-10)
