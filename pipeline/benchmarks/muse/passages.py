"""What is asked of MUSE's further requests, about which its files have no questions: to go on with their texts.

Passages have the lengths of VerbMem's rows, whose prompts are about 650 words of a text and whose answers about 85.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

REQUESTS = 4  # that MUSE has
MOST = 100  # passages of a request: so many rows have VerbMem's
WORDS = 735  # of a passage, at most
FOLLOWING = 85  # of them what follows the prompt; half of a short passage
FEWEST = 8  # words of a passage
BETWEEN = re.compile(r"(?<=\S) (?=\S)")  # where a passage is cut: MUSE puts one space between prompt and answer


def passages(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Starts of passages, and what follows each after one space.

    Every text is cut into passages, which lie one after the other. Where there are more than ``MOST``, so many are
    taken at even distances.

    Args:
        texts: what a request asks to forget
    """
    found = [passage for text in texts for passage in _of_text(text)]
    if len(found) <= MOST:
        return found
    return [found[i * len(found) // MOST] for i in range(MOST)]


def as_rows(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Rows as VerbMem's files have them."""
    return [{"prompt": start, "gt": rest} for start, rest in pairs]


def _of_text(text: str) -> list[tuple[str, str]]:
    spaces = [place.start() for place in BETWEEN.finditer(text)]
    cuts = [-1, *spaces, len(text)]
    found = []
    for first in range(0, len(cuts) - 1, WORDS):
        words = min(WORDS, len(cuts) - 1 - first)
        if words < FEWEST:
            continue
        start, middle, end = cuts[first], cuts[first + words - min(FOLLOWING, words // 2)], cuts[first + words]
        found.append((text[start + 1 : middle], text[middle + 1 : end]))
    return found
