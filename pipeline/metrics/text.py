"""Comparisons and checks of generated text."""

from __future__ import annotations

import re
from collections.abc import Sequence

GRAM = 4
SHORTEST = 8  # pieces; the 4-grams of shorter texts say little
PIECE = re.compile(r"\w{1,8}|[^\w\s]")


def rouge_recall(references: Sequence[str], predictions: Sequence[str]) -> dict[str, list[float]]:
    """ROUGE recall of each prediction against its reference: ``{"rouge1": [...], "rougeL": [...]}``, in [0, 1].

    Lin (2004) as Google's ``rouge_score`` computes it, Porter stemmer on, as open-unlearning evaluates TOFU.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(target=r, prediction=p) for r, p in zip(references, predictions, strict=True)]
    return {kind: [score[kind].recall for score in scores] for kind in kinds}


def rouge_f1(references: Sequence[str], predictions: Sequence[str], stemmer: bool) -> list[float]:
    """ROUGE-L F1 of each prediction against its reference, in [0, 1].

    As ``rouge_recall``; open-unlearning evaluates MUSE with the Porter ``stemmer``, MUSE's own code without.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=stemmer)
    return [scorer.score(r, p)["rougeL"].fmeasure for r, p in zip(references, predictions, strict=True)]


def rouge_scores(reference: str, prediction: str) -> dict[str, float]:
    """The ROUGE scores of one prediction under open-unlearning's names, with the Porter stemmer as there."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(target=reference, prediction=prediction)
    return {
        "rouge1_recall": scores["rouge1"].recall,
        "rougeL_f1": scores["rougeL"].fmeasure,
        "rougeL_recall": scores["rougeL"].recall,
    }


def repeats_itself(text: str) -> bool:
    """Whether fewer than half of the text's 4-grams are distinct.

    A piece of the text is a run of at most 8 letters or digits, or one other visible character, so that endless words
    and rows of dots are found as well. Texts under 8 pieces never count.
    """
    pieces = PIECE.findall(text)
    if len(pieces) < SHORTEST:
        return False
    grams = [tuple(pieces[i : i + GRAM]) for i in range(len(pieces) - GRAM + 1)]
    return 2 * len(set(grams)) < len(grams)
