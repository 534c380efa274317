"""A checked experiment, with everything that it names: what ``pipeline.config.load`` gives, and plans are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_ext.config import Layout
from pipeline.benchmarks import Family, Options, data_family, family
from pipeline.benchmarks.lm_eval.options import LmEvalOptions
from pipeline.config.benchmark_schema import Benchmark
from pipeline.config.method_schema import Method
from pipeline.config.model_schema import Model
from pipeline.config.schema import Experiment
from pipeline.config.sizing import Shape
from pipeline.config.sweeps import Value
from pipeline.data.prepared import DataFamily, HasRequests, Names, ReadsUserFiles
from pipeline.data.settings import DataSource, PromptTemplate


def requested(experiment: Experiment, benchmark: Benchmark) -> tuple[str, ...]:
    """The forget splits of every request to forget, the experiment's own first; none where there is but one."""
    wanted, data = experiment.requests, data_family(benchmark.family)
    if wanted is None or not isinstance(data, HasRequests):
        return ()
    return data.requests(benchmark.source, experiment.split, wanted.order)[: wanted.count]


def retrain_split(experiment: Experiment, benchmark: Benchmark) -> str:
    """The forget split of which a published retrain has seen nothing: that of all requests together."""
    later, data = requested(experiment, benchmark)[1:], data_family(benchmark.family)
    return data.kept_by(experiment.split, later) if later and isinstance(data, HasRequests) else experiment.split


def data_files(experiment: Experiment, benchmark: Benchmark, sets: Sequence[str], training: bool) -> list[Names]:
    """The files of a hub repository or a folder that are read for an experiment, as ``DataFamily.files``."""
    data, split, later = data_family(benchmark.family), experiment.split, requested(experiment, benchmark)[1:]
    if later and isinstance(data, HasRequests):
        return data.files(split, sets, training, later)
    return data.files(split, sets, training)


@dataclass(frozen=True)
class Run:
    """One method of an experiment with all its settings.

    Attributes:
        method: The method.
        variant: What tells it from others of the same method; a swept one has its point's name in it.
        swept: Of a sweep, the id of the method that was swept.
        point: Of a sweep, the values that this run has, by dotted key.
    """

    method: Method
    variant: str | None
    swept: str | None = None
    point: Mapping[str, Value] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return run_id(self.method.name, self.variant)


def run_id(method: str, variant: str | None) -> str:
    """How a method with its variant is called."""
    return f"{method}-{variant}" if variant else method


@dataclass(frozen=True)
class Utility:
    """A further benchmark, which nothing is trained on: what it asks, and where its own questions come from."""

    benchmark: Benchmark
    source: DataSource
    options: LmEvalOptions

    @property
    def split(self) -> str:
        """Of the benchmark's splits the first: what is forgotten decides nothing here."""
        return self.benchmark.forget_splits[0]


@dataclass(frozen=True)
class Config:
    """A checked experiment and everything that it names.

    ``settings``: ``KEY=VALUE`` texts of the command line, in place of the file's own values. ``described``: of a model
    on the hub without an ``architecture``, the entries of its config that the plan was made with.
    """

    experiment: Experiment
    benchmark: Benchmark
    model: Model
    runs: tuple[Run, ...]
    layout: Layout
    source: DataSource
    options: Options
    shape: Shape
    settings: tuple[str, ...] = ()
    template: PromptTemplate = "plain"
    described: Mapping[str, Any] = field(default_factory=dict)
    utility: tuple[Utility, ...] = ()

    @property
    def hub_datasets(self) -> dict[str, str]:
        """Whole data sets of the hub, with revisions, that evaluations read."""
        found = dict(self.options.hub_datasets)
        for one in self.utility:
            found |= one.options.hub_datasets
        return found

    @property
    def family(self) -> Family:
        return family(self.benchmark.family)

    @property
    def data(self) -> DataFamily:
        return data_family(self.benchmark.family)

    @property
    def forget_rows(self) -> int:
        """Rows of the forget set: counted where that is possible, else as the benchmark file states."""
        return self._rows(self.experiment.split)

    @property
    def forget_rows_are_exact(self) -> bool:
        """Whether ``forget_rows`` was counted, and no row may be dropped."""
        counted = self.data.rows(self.source, self.experiment.split)
        return counted is not None and self.experiment.data.bad_rows == "error"

    @property
    def requests(self) -> tuple[str, ...]:
        """The forget splits of every request to forget, the experiment's own first; none where there is but one."""
        return requested(self.experiment, self.benchmark)

    @property
    def retrain_split(self) -> str:
        """The forget split of which a published retrain has seen nothing."""
        return retrain_split(self.experiment, self.benchmark)

    def request_rows(self, split: str) -> int:
        """As ``forget_rows``, of another split."""
        return self._rows(split)

    def _rows(self, split: str) -> int:
        counted = self.data.rows(self.source, split)
        if counted is not None:
            return counted
        if isinstance(self.data, ReadsUserFiles):
            return self.data.estimated_rows(self.source, split, self.experiment.data.max_length)
        stated = self.benchmark.splits
        found = self.data.stated_rows(split, stated) if isinstance(self.data, HasRequests) else stated.get(split)
        return stated[self.experiment.split] if found is None else found

    @property
    def has_retrain(self) -> bool:
        """Whether there is a model that never saw the forget set."""
        trained = self.experiment.training.retrain is not None
        return trained or self.model.published("retrain", self.retrain_split) is not None

    def resolved(self) -> dict[str, Any]:
        """Everything that was configured, as plain data, with every default filled in."""
        return {
            **({"set": list(self.settings)} if self.settings else {}),
            "experiment": self.experiment.model_dump(mode="json", exclude=None if self.utility else {"utility"}),
            "layout": self.layout.model_dump(mode="json"),
            "source": self.source.model_dump(mode="json"),
            "options": self.options.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json", exclude={"layouts"}),
            "methods": {run.id: run.method.model_dump(mode="json") for run in self.runs},
        }
