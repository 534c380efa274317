"""The names of further requests' evaluated sets, apart from settings: preparing data runs no code of an evaluation."""

from __future__ import annotations

REQUEST = "request_"  # begins the names of further requests' sets


def request_set(number: int) -> str:
    """The evaluated set of a further request, by its number from 2."""
    return f"{REQUEST}{number}"
