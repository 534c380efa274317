"""Question-answer rows, and splits of them by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A question and its answer; ``paraphrased`` and ``perturbed`` answers are scored, never trained."""

    question: str
    answer: str
    paraphrased: str | None = None
    perturbed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """The splits of one benchmark under TOFU's names.

    Attributes:
        rows: rows by split
        origins: by split where its rows came from, for messages
        source: what the manifest records of it
    """

    rows: dict[str, list[Row]]
    origins: dict[str, str]
    source: dict[str, Any] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each split's rows: equal text gives equal digests, wherever it came from."""
        return {name: hashlib.sha256(_canonical(rows)).hexdigest() for name, rows in self.rows.items()}

    def overlap(self, first: str, second: str) -> int:
        """Questions of split ``first`` that ``second`` holds too, but for case and white space."""
        known = {_normal(row.question) for row in self.rows[second]}
        return sum(_normal(row.question) in known for row in self.rows[first])


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _canonical(rows: list[Row]) -> bytes:
    return json.dumps([[r.question, r.answer, r.paraphrased, r.perturbed] for r in rows], ensure_ascii=True).encode()
