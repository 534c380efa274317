"""What the ``evaluate`` command prints of an evaluation: headline metrics, what was flagged, where the files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.benchmarks import Metric, family
from pipeline.benchmarks.records import EVALUATION, EXAMPLES, EvaluationRecord
from pipeline.data.json_files import read_object
from pipeline.specs import EvaluateSpec

IDEALS = {"higher": "higher is better", "lower": "lower is better", "one": "ideal: 1", "zero": "ideal: 0", None: ""}
COUNTS = {
    "empty_generations": "empty answers",
    "repetitive_generations": "answers that repeat themselves",
    "cut_generations": "answers cut short by the model's context",
}


def lines(spec: EvaluateSpec) -> list[str]:
    """The results of a finished evaluation, as text."""
    record = EvaluationRecord.read(spec.output / EVALUATION)
    summary = read_object(spec.output / "summary.json")
    values = {key: value for key, value in record.metrics.items() if value is not None}
    known = [metric for metric in family(spec.options.family).metrics(spec.options) if metric.key in values]
    notes = [f"warning: the model has collapsed: {reason}" for reason in summary.get("collapsed_because", [])]
    notes += [f"note: {summary[key]} {what}" for key, what in COUNTS.items() if summary.get(key)]
    examples = sum(record.settings.examples.values())
    return [
        "",
        *table([metric for metric in known if metric.headline] or known, values),
        "",
        *notes,
        f"{spec.output / EVALUATION}: all {len(values)} metrics and their settings",
        f"{spec.output / EXAMPLES}: raw results of {examples} examples, for `python -m pipeline metrics`",
    ]


def table(metrics: Sequence[Metric], values: Mapping[str, float]) -> list[str]:
    """The values of the metrics as a table in Markdown, a metric in each row."""
    rows = [[metric.title, f"`{metric.key}`", f"{values[metric.key]:.4g}", IDEALS[metric.better]] for metric in metrics]
    rows.insert(0, ["Metric", "Key", "Value", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
