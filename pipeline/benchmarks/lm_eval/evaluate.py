"""Tasks of lm-evaluation-harness (EleutherAI, v0.4.13), WMDP (Li et al. 2024, arXiv 2403.03218) and MMLU among them.

The harness builds the requests and judges what a model answers; examples keep numbers alone, never a question or an
answer's text: some of these questions must not be spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.benchmarks.base import LM, Cost, Evidence, Example, Metric, Requests, describe
from pipeline.benchmarks.lm_eval.options import CHOICE, LmEvalOptions
from pipeline.data.errors import DataError
from pipeline.metrics.multiple_choice import accuracy, accuracy_per_length

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

HARNESS = "lm-evaluation-harness v0.4.13"
LOWER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}
MINIMUM = 20  # questions, of which a model's choices say something about it
ROWS = 15000  # no less than the documents of MMLU, for estimates

COUNTS = (
    Metric("cut_contexts", "Cut contexts", "lower", "documents of which the model read only the end", HARNESS),
    Metric("empty_generations", "Empty answers", "lower", "generations without a text", "this project"),
    Metric(
        "repetitive_generations",
        "Repetitive answers",
        "lower",
        "generations that repeat themselves: fewer than half of their word 4-grams are distinct",
        "this project",
    ),
)


def key_of(task: str, metric: str) -> str:
    """A metric's key: ``exact_match,strict-match`` of task ``t`` is ``t_exact_match_strict-match``."""
    return f"{task}_{metric.replace(',', '_')}"


def _better(options: LmEvalOptions, task: str, metric: str) -> Literal["higher", "lower"]:
    low = metric.partition(",")[0] in LOWER
    return "lower" if low != (task in options.forget) else "higher"


def _evidence(metric: str) -> Evidence:
    """A model that avoids right answers knows them: an accuracy below that of guessing is as far from never knowing."""
    if metric in CHOICE:
        return "likeness"
    return None if metric in LOWER else "knowledge"


class LmEval:
    """Runs tasks of the harness with the model behind its interface, and keeps each document's numbers."""

    options = LmEvalOptions

    def metrics(self, options: LmEvalOptions) -> tuple[Metric, ...]:
        rows = []
        for task in options.tasks:
            part = "forget" if task in options.forget else "retain" if task in options.retain else "other"
            for metric in options.metrics:
                name, _, chosen = metric.partition(",")
                rows.append(
                    Metric(
                        key_of(task, metric),
                        f"{task} {name}" + (f" ({chosen})" if chosen else ""),
                        _better(options, task, metric),
                        f"{name} of the task {task!r}" + (f", answers filtered by {chosen!r}" if chosen else ""),
                        HARNESS,
                        headline=part != "other" or len(options.tasks) <= 4,
                        evidence=_evidence(name) if part == "forget" else None,
                        ideal=1 / options.choices if name in CHOICE else None,
                    )
                )
        return (*rows, *COUNTS)

    def trade_offs(self, options: LmEvalOptions) -> tuple[tuple[str, str], ...]:
        metric = options.metrics[0]
        return tuple((key_of(keep, metric), key_of(drop, metric)) for keep in options.retain for drop in options.forget)

    def sets(self, options: LmEvalOptions) -> tuple[str, ...]:
        return tuple(options.prepared)

    def cost(self, options: LmEvalOptions, forget_rows: int) -> Cost:
        """Four choices a document, and as many documents as MMLU has, or as ``limit`` allows; of prepared tasks as many
        as ten times the forget set. Generation is not counted: only the harness knows which tasks generate."""
        others = len(options.tasks) - len(options.prepared)
        rows = others * ROWS + len(options.prepared) * 10 * forget_rows
        return Cost(4 * min(rows, len(options.tasks) * (options.limit or ROWS)), 0, 0)

    def requests(self, data: Path, options: LmEvalOptions, tokenizer: Tokenizer, vocabulary: int) -> Requests:
        """Loads every task. Raises ``DataError`` that names the task for one that is not known, and for data that are
        not on this machine."""
        from pipeline.benchmarks.lm_eval import run as harness
        from pipeline.benchmarks.lm_eval.load import load

        with harness.quiet(shown=True):
            loaded = load(data, options)

        def ask(model: LM) -> list[dict[str, Any]]:
            with harness.quiet(shown=model.rank == 0):
                return harness.examples_of(loaded, options, model)

        return ask

    def compute_metrics(
        self, examples: Sequence[Example], options: LmEvalOptions, retain_examples: Sequence[Example] | None = None
    ) -> dict[str, float]:
        """Scores of tasks, and of groups as the harness makes them of their tasks' scores."""
        tasks: dict[str, list[Example]] = {}
        for example in examples:
            tasks.setdefault(example["set"], []).append(example)
        values: dict[str, float] = {}
        for name in options.tasks:
            found = {metric: _score(name, metric, tasks) for metric in options.metrics}
            if all(value is None for value in found.values()):
                raise DataError(f"task {name!r}: the examples have none of the metrics {', '.join(options.metrics)}")
            values |= {key_of(name, metric): value for metric, value in found.items() if value is not None}
        values["cut_contexts"] = sum(bool(example["cut"]) for example in examples)
        for key in ("empty", "repetitive"):
            values[f"{key}_generations"] = sum(example.get(key, 0) for example in examples)
        return values

    def collapse(self, examples: Sequence[Example], options: LmEvalOptions, metrics: Mapping[str, float]) -> list[str]:
        """Reasons: one choice to every question of a task that is to stay (of any task, where none is named), by its
        place among the choices; most generated answers are empty or repeat themselves."""
        reasons = []
        kept = options.retain or options.tasks
        tasks: dict[str, list[Example]] = {}
        for example in examples:
            names = {example["set"], *example["groups"]}
            if "log_probs" in example and not names.isdisjoint(kept):
                tasks.setdefault(example["set"], []).append(example)
        for name, some in tasks.items():
            chosen = {_chosen(example) for example in some}
            if len(some) >= MINIMUM and len(chosen) == 1 and len({str(e["gold"]) for e in some}) > 1:
                reasons.append(f"task {name!r}: choice {chosen.pop() + 1} in all of {len(some)} questions")
        generated = sum(example.get("generations", 0) for example in examples)
        bad = metrics["empty_generations"] + metrics["repetitive_generations"]
        if 2 * bad > generated:
            reasons.append(f"{bad:g} of {generated} generated answers are empty or repeat themselves")
        return reasons


def _score(name: str, metric: str, tasks: Mapping[str, Sequence[Example]]) -> float | None:
    """The value of a task or group; ``None`` where it does not have this metric."""
    if name in tasks:
        return _task_score(name, metric, tasks[name])
    values, weights = [], []
    for task, examples in tasks.items():
        weighting = examples[0]["groups"].get(name, {}).get(metric)
        value = None if weighting is None else _task_score(task, metric, examples)
        if value is not None:
            values.append(value)
            weights.append(len(examples) if weighting == "documents" else 1)
    if not values:
        return None
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _task_score(name: str, metric: str, examples: Sequence[Example]) -> float | None:
    if metric in CHOICE and "log_probs" in examples[0]:
        return math.fsum(_choice(metric, example) for example in examples) / len(examples)
    items = [example["values"][metric] for example in examples if metric in example["values"]]
    if not items:
        return None
    aggregation = examples[0]["aggregations"][metric]
    if aggregation == "mean":
        return math.fsum(items) / len(items)
    from lm_eval.api import metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import get_aggregation

    return float(get_aggregation(aggregation)(items))


def _chosen(example: Example) -> int:
    return max(range(len(example["log_probs"])), key=example["log_probs"].__getitem__)


def _choice(metric: str, example: Example) -> float:
    try:
        if metric == "acc":
            return accuracy(example["log_probs"], example["gold"])
        return accuracy_per_length(example["log_probs"], example[CHOICE[metric]], example["gold"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{describe(example)}: {metric}: {error!r}") from None


FAMILY = LmEval()
