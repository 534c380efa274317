"""Whether a model's most likely choice is the right one, from the log-probabilities of all of a question's choices."""

from __future__ import annotations

import math
from collections.abc import Sequence


def accuracy(log_probs: Sequence[float], gold: int | Sequence[int]) -> float:
    """1 where the most likely choice is a right one, else 0; of equally likely choices the first counts.

    Args:
        log_probs: log-probability of each choice, in nats
        gold: place of the right choice, from 0, or places of several

    Raises:
        ValueError: there are no choices, or ``gold`` is none of them

    Source: ``acc`` of lm-evaluation-harness.
    """
    right = [gold] if isinstance(gold, int) else list(gold)
    if not log_probs or not right or not all(0 <= place < len(log_probs) for place in right):
        raise ValueError(f"gold is {gold}, among {len(log_probs)} choices")
    return float(max(range(len(log_probs)), key=log_probs.__getitem__) in right)


def accuracy_per_length(log_probs: Sequence[float], lengths: Sequence[int], gold: int | Sequence[int]) -> float:
    """As ``accuracy``, of log-probabilities divided by the lengths of the choices' texts.

    An empty choice counts as the least likely one, minus infinity, as in the harness, which divides by zero there.

    Args:
        log_probs: log-probability of each choice, in nats
        lengths: length of each choice's text, in characters or UTF-8 bytes
        gold: place of the right choice, from 0, or places of several

    Raises:
        ValueError: as ``accuracy``, and for a negative length

    Source: lm-evaluation-harness, ``acc_norm`` with characters and ``acc_bytes`` with bytes.
    """
    if any(length < 0 for length in lengths):
        raise ValueError(f"a choice's length is negative: lengths are {list(lengths)}")
    pairs = zip(log_probs, lengths, strict=True)
    return accuracy([value / length if length else -math.inf for value, length in pairs], gold)
