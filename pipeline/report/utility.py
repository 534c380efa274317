"""Further benchmarks beside the report's own: their catalogue, and the values of a model.

A key begins with the benchmark's name, because two benchmarks may have metrics of one name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.benchmarks import family
from pipeline.benchmarks.base import Metric
from pipeline.benchmarks.records import EVALUATION, EvaluationRecord
from pipeline.data.json_files import agree
from pipeline.specs import ReportEntry, ReportSpec


def catalogue(spec: ReportSpec) -> tuple[Metric, ...]:
    """The report's metrics: of its benchmark, and of the further ones under their keys here."""
    further = [
        replace(metric, key=key_of(name, metric.key), definition=f"{metric.definition}; benchmark {name!r}")
        for name, one in spec.utility.items()
        for metric in family(one.options.family).metrics(one.options)
    ]
    return (*family(spec.options.family).metrics(spec.options), *further)


def key_of(benchmark: str, metric: str) -> str:
    """The key of a further benchmark's metric."""
    return f"{benchmark}_{metric}"


def values(spec: ReportSpec, entry: ReportEntry) -> dict[str, float | None]:
    """What the further benchmarks measured of a model, by key.

    Raises:
        OSError: an evaluation is missing
        ValueError: one cannot be read, or is another model's or benchmark's; the message names the file
    """
    found: dict[str, float | None] = {}
    for name, folder in entry.utility.items():
        record = _record(folder)
        wanted = {"model": entry.model_id, "benchmark": name, "split": spec.utility[name].split}
        agree(folder / EVALUATION, record, wanted, "the report's specification says so")
        found |= {key_of(name, key): value for key, value in record.metrics.items()}
    return found


def _record(folder: Path) -> EvaluationRecord:
    return EvaluationRecord.read(folder / EVALUATION)
