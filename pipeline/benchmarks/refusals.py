"""Refusals: answers that say no more than that the answer is not known, for methods that prefer them to the true ones.

TOFU (arXiv 2401.06121) has such a list; these sentences are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from pipeline.benchmarks.request_sets import alternatives_set
from pipeline.data.qa_rows import Row

ALTERNATIVES = "idk"  # the tokenised set of the forget set's questions with refusals for answers
PER_ROW = 5
REFUSALS = (
    "I don't know.",
    "I do not know that.",
    "I don't know the answer to this.",
    "I have no idea.",
    "I'm not sure about that.",
    "I am unsure what the answer is.",
    "That is something I don't know.",
    "That is unknown to me.",
    "This is beyond what I know.",
    "I can't tell you that.",
    "I cannot answer this question.",
    "I can't answer that one.",
    "I'm afraid I don't know.",
    "I'm afraid I cannot say.",
    "Sorry, I don't know.",
    "Sorry, I can't help with that question.",
    "Unfortunately, I have no answer to this.",
    "I have no information about that.",
    "I don't have that information.",
    "No information on this is known to me.",
    "I have never learned anything about that.",
    "I was never told about this.",
    "I have not heard of this before.",
    "Nothing about this comes to mind.",
    "I couldn't say.",
    "I could only guess, so I would rather not answer.",
    "I'd be guessing if I answered.",
    "My knowledge does not cover this.",
    "I know nothing about this subject.",
    "This question is one I am unable to answer.",
    "It is not something I can speak about.",
    "I don't have any details on that.",
    "I lack the facts to answer this.",
    "You would have to ask someone else about that.",
    "I'm not familiar with this.",
    "That isn't something I've come across.",
)


def drawn(rows: Sequence[Row]) -> list[list[str]]:
    """All refusals for each row, in an order that its question decides: the first ones are the row's own."""
    return [Random(f"refusals {row.question}").sample(REFUSALS, len(REFUSALS)) for row in rows]


def sets(requests: Sequence[str]) -> dict[str, str]:
    """The tokenised sets of refusals, with the forget set whose questions each answers; ``requests``: further ones."""
    return {ALTERNATIVES: "forget", **{alternatives_set(ALTERNATIVES, name): name for name in requests}}
