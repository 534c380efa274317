"""Answers to questions about what is to be kept: how many say nothing, or the same again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.benchmarks.base import Example, Metric, generation
from pipeline.metrics.text import repeats_itself

METRICS = (
    Metric("empty_generations", "Empty answers", "lower", "retain questions answered with no text", "this project"),
    Metric(
        "repetitive_generations",
        "Repetitive answers",
        "lower",
        "retain questions whose answer repeats itself: fewer than half of its word 4-grams are distinct",
        "this project",
    ),
)


def counts(examples: Sequence[Example]) -> dict[str, float]:
    """The metrics of ``METRICS``; raises ``DataError`` for an example without a generation."""
    texts = [generation(example) for example in examples]
    return {
        "empty_generations": sum(not text for text in texts),
        "repetitive_generations": sum(map(repeats_itself, texts)),
    }


def collapse(metrics: Mapping[str, float], asked: int) -> list[str]:
    """A reason to take a model for destroyed, where most of the ``asked`` answers are empty or repeat themselves."""
    bad = sum(metrics[metric.key] for metric in METRICS)
    if 2 * bad <= asked:
        return []
    return [f"{bad} of {asked} retain questions have an empty answer or one that repeats itself"]
