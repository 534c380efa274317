"""The error that data raise, and texts of others as a terminal may have them."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class DataError(ValueError):
    """Something is wrong with the data or its place; the message names where."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """``text`` with an escape in place of each character that a terminal would obey, but for line ends and tabs."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
