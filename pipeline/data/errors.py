"""The error that data raise."""

from __future__ import annotations


class DataError(ValueError):
    """Something is wrong with the data or its place; the message names where."""
