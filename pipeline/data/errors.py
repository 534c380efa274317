"""The error that data raise, and texts of others as a terminal may have them."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class DataError(ValueError):
    """Something is wrong with the data or its place; the message names where."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def unread(path: Path, error: OSError) -> str:
    """That a file cannot be read, and why; of one that is not there, the file of the closest name beside it."""
    close: list[str] = []
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():
        close = get_close_matches(path.name, [one.name for one in path.parent.iterdir()], n=1, cutoff=0.8)
    return f"cannot be read: {error.strerror}" + "".join(f"; did you mean {name!r}?" for name in close)


def printable(text: str) -> str:
    """``text`` with an escape in place of each character that a terminal would obey, but for line ends and tabs."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
