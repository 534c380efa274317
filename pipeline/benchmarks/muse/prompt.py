"""MUSE's knowledge prompt, which the generator's readers' questions share."""

from __future__ import annotations

from collections.abc import Iterable


def prompt(shots: Iterable[tuple[str, str]], question: str) -> str:
    """Answered questions, then one without its answer.

    Args:
        shots: the answered questions, each with its answer
        question: the question to be answered
    """
    answered = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in shots)
    return f"{answered}Question: {question}\nAnswer: "
