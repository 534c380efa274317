"""What a benchmark family says: which texts are scored or generated, and how the results become metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.data.rows import DataError

SCHEMA = 1  # of evaluation.json
Example = Mapping[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """One number of ``evaluation.json``.

    ``key``: its name there. ``better``: which way is better; ``"one"`` for values whose ideal is 1, ``None`` where
    nothing is. ``definition``: one line. ``source``: whose definition it is. ``headline``: belongs in a short table.
    """

    key: str
    title: str
    better: Literal["higher", "lower", "one", None]
    definition: str
    source: str
    headline: bool = False


@dataclass(frozen=True)
class Item:
    """One example of a set, as token ids.

    ``targets``: name -> (prompt, target), whose log-probability is wanted. ``generation_prompt``: what to continue, or
    ``None``. ``question`` and ``answer`` are the texts that a generation is shown and compared with.
    """

    set: str
    index: int
    question: str
    answer: str
    targets: Mapping[str, tuple[list[int], list[int]]]
    generation_prompt: list[int] | None = None


class Family(Protocol):
    """A benchmark family; ``pipeline.benchmarks.tofu`` is one.

    An example, in memory and as a line of ``examples.jsonl``, is ``{"set": str, "index": int, "question": str,
    "answer": str, "scores": {target name: {"log_prob": float, "tokens": int, "avg_loss": float}}, "generation": str or
    null}``: log-probabilities in nats, summed over the target's tokens, end token included; ``avg_loss`` is
    ``-log_prob / tokens``.
    """

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric that the family can report, in the order of a table."""

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the evaluated sets: ``evaluation/<set>.jsonl`` of the prepared folder."""

    def amount(self, forget_rows: int) -> tuple[int, int]:
        """Sequences that are scored and answers that are generated, at most: for estimates of time."""

    def items(self, data: Path) -> list[Item]:
        """What to score and generate, from the folder that the prepare step wrote."""

    def recompute(
        self, examples: Sequence[Example], retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        """Metrics of the examples; those that compare with retrain only where its examples are given."""

    def collapse(self, examples: Sequence[Example], metrics: Mapping[str, float]) -> list[str]:
        """Why the model must be taken for destroyed, a sentence a reason; empty where it is not."""


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; raises ``DataError`` that names file and line of what is not an object."""
    rows: list[Row] = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object, got {line.strip()[:60]!r}")
            rows.append(row)
    return rows


def avg_loss(example: Example, target: str) -> float:
    """Negative log-probability of an example's target in nats per token.

    Raises ``DataError`` that names the example where the score is missing or not a finite number.
    """
    score = example["scores"].get(target)
    if score is None:
        raise DataError(f"set {example['set']!r}, example {example['index']}: no score of target {target!r}")
    loss = score["avg_loss"]
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        raise DataError(f"set {example['set']!r}, example {example['index']}: target {target!r} has avg_loss {loss!r}")
    return loss
