"""How much of a text a model can continue by itself, measured as open-unlearning does from teacher-forced predictions.

``correct`` says of each token of the text, without the end token, whether it is the most likely one in its place.
"""

from __future__ import annotations

from collections.abc import Sequence


def extraction_strength(correct: Sequence[bool]) -> float:
    """``1 - k / n`` for the least ``k`` such that all tokens after the first ``k`` are predicted; 0 for an empty text.

    ``k`` is at most ``n - 1``: a text of which nothing is predicted scores ``1 / n``, and so does one of which only the
    last token is predicted.

    Source: Carlini et al. 2021 (arXiv 2012.07805), as open-unlearning's ``extraction_strength`` computes it.
    """
    n = len(correct)
    if n == 0:
        return 0.0
    k = n
    while k > 0 and correct[k - 1]:
        k -= 1
    return 1 - min(k, n - 1) / n


def exact_memorisation(correct: Sequence[bool]) -> float | None:
    """Share of the tokens that are predicted (open-unlearning's ``exact_memorization``); ``None`` for an empty text."""
    return sum(correct) / len(correct) if correct else None
