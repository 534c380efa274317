"""The names of further requests' sets, apart from settings: preparing data runs no code of an evaluation."""

from __future__ import annotations

REQUEST = "request_"  # begins the names of further requests' sets


def request_set(number: int) -> str:
    """The evaluated set of a further request, by its number from 2."""
    return f"{REQUEST}{number}"


def request_sets(requests: int) -> tuple[str, ...]:
    """The evaluated sets of what each of so many requests adds, but for the first one, which has the forget set."""
    return tuple(request_set(number) for number in range(2, requests + 1))


def alternatives_set(answers: str, request: str) -> str:
    """The tokenised set of other ``answers`` to a further request's questions; no user's set can be called so."""
    return f"{answers}.{request}"
