"""How much of a text the model continues by itself, as open-unlearning measures it: from teacher-forced predictions.

``correct``: of each token of the text, the end token left out, whether it is the most likely one after those before it.
"""

from __future__ import annotations

from collections.abc import Sequence


def extraction_strength(correct: Sequence[bool]) -> float:
    """``1 - k / n`` for the least ``k`` such that all tokens after the first ``k`` are predicted (Carlini et al. 2021),
    as open-unlearning's ``extraction_strength`` computes it.

    There ``k`` is at most ``n - 1``: a text of which nothing is predicted scores ``1 / n``, and so does one of which
    only the last token is. 0 for an empty text.
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
