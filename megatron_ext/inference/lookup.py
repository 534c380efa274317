"""Guesses of what follows in a text, from what followed the same tokens earlier in it."""

from __future__ import annotations

from collections.abc import Iterable

SAME = 3  # tokens that a place must have in common with the end of the text
FEWEST, MOST = 2, 16  # tokens of a guess


class Lookup:
    """A text, and where in it each few tokens were last.

    The longer guesses have been right, the longer they become, and the other way round.
    """

    def __init__(self, text: Iterable[int]) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # what comes after these tokens is there
        self._size = FEWEST
        for token in text:
            self.add(token)

    def add(self, token: int) -> None:
        """The text goes on with this token."""
        if len(self._text) >= SAME:
            self._after[tuple(self._text[-SAME:])] = len(self._text)
        self._text.append(token)

    def guess(self, most: int) -> list[int]:
        """What may follow: at most so many tokens, and none where nothing like the end was there before."""
        place = self._after.get(tuple(self._text[-SAME:]))
        if place is None or len(self._text) < SAME:
            return []
        # What follows there may come to the end of the text, and then goes on with what is guessed.
        period = len(self._text) - place
        found: list[int] = []
        for i in range(min(most, self._size)):
            found.append(self._text[place + i] if i < period else found[i - period])
        return found

    def judge(self, guessed: int, right: int) -> None:
        """Of the last guess's tokens so many were right."""
        if guessed:
            self._size = min(MOST, 2 * self._size) if right == guessed else max(FEWEST, right)
