"""A finished experiment in Python: its models, metrics, step logs and examples, for notebooks and further analysis.

    from pipeline import results

    run = results.load("results/mini")
    run.model("npo-seed-0").metrics["forget_quality"]
    run.model("npo-seed-0").steps()       # a dictionary for each optimizer step
    run.metrics()                         # a dictionary for each value, as pandas.DataFrame takes them

Neither torch nor megatron-core is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.benchmarks.records import EVALUATION, EvaluationRecord, verified_examples
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows
from pipeline.report import finished, utility
from pipeline.specs import ReportEntry, ReportSpec


@dataclass(frozen=True)
class Model:
    """A model of an experiment.

    Attributes:
        id: names it and its folders: ``target``, ``retrain``, ``npo-seed-0``, ``npo-seed-0.int4``
        kind: ``target``, ``retrain`` or ``unlearned``
        title: what the report calls it
        method: the method's name; ``None`` for target and retrain
        variant: of the method, where it has one
        seed: of unlearning
        attack: what was done to the model afterwards; ``None``: nothing
        request: number of the request to forget that it was asked last, from 1
        metrics: values by key, as ``evaluation.json`` has them, those of further benchmarks under their names;
            ``None`` where there is no value
        evaluation: folder of ``evaluation.json`` and ``examples.jsonl``
        run: folder of its checkpoint and logs; ``None`` where there is none
    """

    id: str
    kind: str
    title: str
    method: str | None
    variant: str | None
    seed: int | None
    attack: str | None
    request: int
    metrics: Mapping[str, float | None]
    evaluation: Path
    run: Path | None

    def steps(self) -> list[dict[str, Any]]:
        """The step log, a dictionary for each optimizer step, with the keys that docs/results.md lists.

        Returns:
            Nothing for a model that was not trained here.

        Raises:
            DataError: The log cannot be read; the message names file and line.
        """
        path = None if self.run is None else self.run / "steps.jsonl"
        return read_rows(path) if path is not None and path.is_file() else []

    def examples(self, name: str | None = None) -> list[dict[str, Any]]:
        """The raw examples: texts, answers and log-probabilities, a dictionary each.

        Args:
            name: Of an evaluated set, whose examples alone are returned.

        Raises:
            DataError: They cannot be read, are not those that the metrics were computed from, or no set has that name.
        """
        rows = verified_examples(self.evaluation, EvaluationRecord.read(self.evaluation / EVALUATION))
        found = [row for row in rows if name in (None, row["set"])]
        if not found:
            sets = ", ".join(dict.fromkeys(row["set"] for row in rows))
            raise DataError(f"{self.evaluation}: no examples of set {name!r}; there are: {sets}")
        return found


@dataclass(frozen=True)
class Results:
    """A finished experiment.

    Attributes:
        folder: its results
        experiment: its name
        benchmark: the benchmark's name
        split: what was forgotten
        config: the resolved experiment
        models: target, retrain and the unlearned models; then those after attacks, and after further requests
    """

    folder: Path
    experiment: str
    benchmark: str
    split: str
    config: Mapping[str, Any]
    models: tuple[Model, ...]

    def model(self, name: str) -> Model:
        """The model with that id.

        Raises:
            KeyError: There is none; the message names those that there are.
        """
        found = {model.id: model for model in self.models}
        if name not in found:
            raise KeyError(f"{self.folder}: no model {name!r}; there are: {', '.join(found)}")
        return found[name]

    def metrics(self) -> list[dict[str, Any]]:
        """Every value of every model as a row: ``model``, what says which model that is, ``metric`` and ``value``."""
        keys = ("kind", "method", "variant", "seed", "attack", "request")
        return [
            {"model": model.id, **{key: getattr(model, key) for key in keys}, "metric": metric, "value": value}
            for model in self.models
            for metric, value in model.metrics.items()
        ]


def load(folder: str | Path) -> Results:
    """Read a finished experiment.

    Args:
        folder: Its results, such as ``results/mini``. It may have been moved.

    Raises:
        DataError: There is no report in it, or a file is not what a step writes.
    """
    folder = Path(folder)
    spec = finished.specification(folder)
    entries = [*spec.entries, *spec.attacked, *spec.later_requests]
    return Results(folder, spec.experiment, spec.benchmark, spec.split, spec.config, tuple(_models(spec, entries)))


def _models(spec: ReportSpec, entries: list[ReportEntry]) -> Iterator[Model]:
    for entry in entries:
        own = EvaluationRecord.read(entry.evaluation / EVALUATION).metrics
        yield Model(
            id=entry.model_id,
            kind=entry.kind,
            title=entry.title,
            method=entry.method,
            variant=entry.variant,
            seed=entry.seed,
            attack=entry.attack,
            request=entry.request or 1,
            metrics={**own, **utility.values(spec, entry)},
            evaluation=entry.evaluation,
            run=entry.run,
        )
