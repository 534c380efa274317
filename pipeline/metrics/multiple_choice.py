"""Whether a model's most likely choice is the right one, from the log-probabilities of all of a question's choices."""

from __future__ import annotations

from collections.abc import Sequence


def accuracy(log_probs: Sequence[float], gold: int | Sequence[int]) -> float:
    """1 where the most likely choice, among equal ones the first, is ``gold`` or one of ``gold``, else 0.

    lm-evaluation-harness's ``acc``. Raises ``ValueError`` for no choices, and for a gold place that is none of them.
    """
    right = [gold] if isinstance(gold, int) else list(gold)
    if not log_probs or not right or not all(0 <= place < len(log_probs) for place in right):
        raise ValueError(f"gold is {gold}, among {len(log_probs)} choices")
    return float(max(range(len(log_probs)), key=log_probs.__getitem__) in right)


def accuracy_per_length(log_probs: Sequence[float], lengths: Sequence[int], gold: int | Sequence[int]) -> float:
    """As ``accuracy``, of log-probabilities divided by the lengths of the choices' texts.

    lm-evaluation-harness's ``acc_norm`` with characters, ``acc_bytes`` with UTF-8 bytes. Raises ``ValueError`` for an
    empty choice too.
    """
    if not all(length > 0 for length in lengths):
        raise ValueError(f"a choice is empty: lengths are {list(lengths)}")
    return accuracy([value / length for value, length in zip(log_probs, lengths, strict=True)], gold)
