"""Attacks that tell texts a model was trained on from texts it was not: a score a text, and how well scores tell.

Every score is lower where the attack takes the text for a member. ``log_probs``, ``means`` and ``variances`` are those
of ``megatron_ext.inference.scoring.Tokenwise``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

SPREAD = 1e-6  # least variance of Min-K++


def lowest(values: Sequence[float], share: float, at_least_one: bool = True) -> list[float]:
    """The lowest ``share`` of the values, the number of them rounded down; at least one of them if there is any."""
    count = int(share * len(values))
    return sorted(values)[: max(1, count) if at_least_one else count]


def min_k(log_probs: Sequence[float], share: float = 0.4) -> float:
    """Minus the mean of the lowest ``share`` of the tokens' log-probabilities (Min-K% Prob, arXiv 2310.16789)."""
    worst = lowest(log_probs, share)
    return -math.fsum(worst) / len(worst)


def min_k_plus_plus(
    log_probs: Sequence[float], means: Sequence[float], variances: Sequence[float], share: float = 0.4
) -> float:
    """As ``min_k``, of log-probabilities standardised by the model's own distribution at each token (Min-K%++, arXiv
    2404.02936); a variance counts as 1e-6 at least."""
    rows = zip(log_probs, means, variances, strict=True)
    return min_k([(value - mean) / math.sqrt(max(spread, SPREAD)) for value, mean, spread in rows], share)


def zlib_ratio(avg_loss: float, text: str) -> float:
    """Loss a token over the bytes of the text when compressed (Carlini et al. 2021)."""
    return avg_loss / len(zlib.compress(text.encode("utf-8")))


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The probability that a text of ``others`` scores higher than one of ``members``, ties counting half: the area
    under the ROC curve. 1: members are told by their scores. 0.5: they are not.

    Raises ``ValueError`` for no scores, or one that is not finite.
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
    """How much more than retrain's the model's scores tell members, in percent: ``100 (a - r) / (r + 1e-10)`` with
    ``a = 1 - AUC`` of the model and ``r`` of retrain.

    MUSE (arXiv 2407.06460), section 4: -100 where members are told perfectly (too little is forgotten), 0 as retrain,
    above 0 where members look less familiar than others (too much is). ``value`` and ``retrain`` are ``auc`` of Min-40%
    scores, as open-unlearning has them; MUSE's own code ranks the other way round, so that its AUC is 1 minus this one.
    """
    return 100 * ((1 - value) - (1 - retrain)) / ((1 - retrain) + 1e-10)
