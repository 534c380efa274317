"""The one place where an experiment is checked, with the benchmark, model and method files that it names.

``load`` reads an experiment with the files that it names and raises ``ConfigError`` with everything that is wrong. It
imports neither torch nor a workflow engine: checking takes a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_ext.config import Layout
from pipeline.benchmarks import Family, Options, data_family, families, family
from pipeline.benchmarks.base import Judged
from pipeline.config import methods, sizing
from pipeline.config.located_yaml import ConfigError, Document, check, hint, merge, read
from pipeline.config.schema import (
    Batches,
    Benchmark,
    Experiment,
    Method,
    MethodUse,
    Model,
    Relearn,
    checkpoints,
    tokenizer_source,
)
from pipeline.config.site import Site
from pipeline.config.sizing import Shape
from pipeline.data.prepared import DataFamily, HasRequests
from pipeline.data.settings import DataSource, FolderSource, HubSource
from pipeline.hub import local_files

CONFIGS = Path(__file__).resolve().parents[2] / "workflow_configs"


@dataclass(frozen=True)
class Run:
    """One method of an experiment with all its settings."""

    method: Method
    variant: str | None

    @property
    def id(self) -> str:
        return f"{self.method.name}-{self.variant}" if self.variant else self.method.name


@dataclass(frozen=True)
class Config:
    """A checked experiment and everything that it names."""

    experiment: Experiment
    benchmark: Benchmark
    model: Model
    runs: tuple[Run, ...]
    layout: Layout
    source: DataSource
    options: Options
    shape: Shape

    @property
    def family(self) -> Family:
        return family(self.benchmark.family)

    @property
    def data(self) -> DataFamily:
        return data_family(self.benchmark.family)

    @property
    def forget_rows(self) -> int:
        """Rows of the forget set: counted where that is possible, else as the benchmark file states."""
        counted = self.data.rows(self.source, self.experiment.split)
        return self.benchmark.splits[self.experiment.split] if counted is None else counted

    @property
    def forget_rows_are_exact(self) -> bool:
        """Whether ``forget_rows`` was counted, and no row may be dropped."""
        counted = self.data.rows(self.source, self.experiment.split)
        return counted is not None and self.experiment.data.bad_rows == "error"

    @property
    def requests(self) -> tuple[str, ...]:
        """The forget splits of every request to forget, the experiment's own first; none where there is but one."""
        requests = self.experiment.requests
        return (
            self.data.requests(requests.order)[: requests.count]
            if requests and isinstance(self.data, HasRequests)
            else ()
        )

    def request_rows(self, split: str) -> int:
        """As ``forget_rows``, of another split."""
        counted = self.data.rows(self.source, split)
        return self.benchmark.splits.get(split, self.forget_rows) if counted is None else counted

    @property
    def has_retrain(self) -> bool:
        """Whether there is a model that never saw the forget set."""
        trained = self.experiment.training.retrain is not None
        return trained or self.model.published("retrain", self.experiment.split) is not None

    def resolved(self) -> dict[str, Any]:
        """Everything that was configured, as plain data, with every default filled in."""
        return {
            "experiment": self.experiment.model_dump(mode="json"),
            "layout": self.layout.model_dump(mode="json"),
            "source": self.source.model_dump(mode="json"),
            "options": self.options.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json", exclude={"layouts"}),
            "methods": {run.id: run.method.model_dump(mode="json") for run in self.runs},
        }


def load(experiment: str | Path, data_root: str | Path | None = None, site: Site | None = None) -> Config:
    """The experiment of that name or file, checked; ``data_root`` replaces a hub source with a local folder.

    With ``site``, jobs are to run on its nodes, and nothing is asked of this machine. Raises ``ConfigError`` that lists
    every problem found.
    """
    path = _experiment_file(experiment)
    document = read(path)
    problems: list[str] = []
    parsed: Experiment | None = check(Experiment, document, problems)
    folders = list(dict.fromkeys([path.absolute().parent.parent, CONFIGS]))
    if parsed is None:
        _Checker(document, Experiment.model_construct(methods=document.data.get("methods")), folders, problems).names()
        raise ConfigError(problems)
    return _Checker(document, parsed, folders, problems).config(data_root, site)


def _experiment_file(experiment: str | Path) -> Path:
    path = Path(experiment).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    named = CONFIGS / "experiments" / f"{experiment}.yaml"
    if not named.is_file():
        known = sorted(file.stem for file in named.parent.glob("*.yaml"))
        raise ConfigError([f"experiment: no file and no known name: {str(experiment)!r}{hint(experiment, known)}"])
    return named


class _Checker:
    """The checks that need more than one file, in the order in which a reader would make them."""

    def __init__(self, document: Document, experiment: Experiment, folders: list[Path], problems: list[str]):
        self.document, self.experiment, self.folders, self.problems = document, experiment, folders, problems

    def config(self, data_root: str | Path | None, site: Site | None) -> Config:
        experiment = self.experiment
        benchmark, benchmark_file = self._named(Benchmark, "benchmarks", experiment.benchmark, ("benchmark",))
        model, model_file = self._named(Model, "models", experiment.model, ("model",))
        options = self._options(benchmark, benchmark_file) if benchmark else None
        source = self._source(benchmark, benchmark_file, options, data_root) if benchmark else None
        shape = self._shape(model, model_file) if model else None
        layout = self._layout(model, shape)
        if layout:
            self._place(layout, site)
        if benchmark and options:
            self._published(benchmark, benchmark_file, options)
        if benchmark and model:
            self._models(benchmark, model, model_file, shape)
        if model and options:
            self._retrain(model, options)
        if options:
            self._judge(options)
        if benchmark and source:
            self._requests(benchmark, source)
        if shape and options:
            new = family(options.family).cost(options, 1).new_tokens
            if new >= shape.context:
                message = f"an answer may have {new} new tokens; the model's context is {shape.context}"
                self.problem(("evaluation", "options"), message)
        runs = self._runs()
        if layout:
            self._batches(layout, runs)
        if benchmark and self.experiment.split in data_family(benchmark.family).splits:
            self._relearning(len(data_family(benchmark.family).topics(self.experiment.split)))
        robustness = self.experiment.robustness
        if self.experiment.requests is not None and (robustness.relearned or robustness.quantised):
            self.problem(("robustness",), "does not go with 'requests': attacks are made for one request to forget")
        self._methods(layout or Layout(), shape, runs)
        if benchmark and source:
            self._alternatives(benchmark, source, runs)
        if self.problems or not (benchmark and model and shape and layout and source and options):
            raise ConfigError(self.problems)
        return Config(experiment, benchmark, model, tuple(run for _, run in runs), layout, source, options, shape)

    def names(self) -> None:
        """What can be said of an experiment that is wrong in itself: problems of the files that it names."""
        given = self.document.data
        if isinstance(given.get("benchmark"), str):
            self._named(Benchmark, "benchmarks", given["benchmark"], ("benchmark",))
        if isinstance(given.get("model"), str):
            self._named(Model, "models", given["model"], ("model",))
        if isinstance(given.get("methods"), list) and isinstance(given.get("unlearning", {}), dict):
            self._runs()

    def problem(self, key: tuple[str | int, ...], message: str) -> None:
        self.problems.append(self.document.problem(key, message))

    def _find(self, kind: str, name: str, key: tuple[str | int, ...]) -> Document | None:
        for folder in self.folders:
            if (folder / kind / f"{name}.yaml").is_file():
                try:
                    return read(folder / kind / f"{name}.yaml")
                except ConfigError as error:
                    self.problems += error.problems
                    return None
        known = sorted({file.stem for folder in self.folders for file in (folder / kind).glob("*.yaml")})
        self.problem(key, f"unknown {kind[:-1]} {name!r}{hint(name, known)}")
        return None

    def _named(self, kind: Any, folder: str, name: str, key: tuple[str | int, ...]) -> tuple[Any, Document | None]:
        found = self._find(folder, name, key)
        if found is None:
            return None, None
        parsed = check(kind, found, self.problems)
        if parsed and parsed.name != name:
            self.problems.append(found.problem(("name",), f"{parsed.name!r} must be the file's own name, {name!r}"))
        return parsed, found

    def _options(self, benchmark: Benchmark, document: Document) -> Options | None:
        """The family's settings: the benchmark's, with the experiment's laid on them."""
        given = merge(document.at("options"), self.document.at("evaluation", "options"))
        if "family" in given.data:
            self.problems.append(given.problem(("family",), "unknown key; the benchmark file's 'family' says it"))
            return None
        whole = Document({"family": benchmark.family, **given.data}, {**given.marks, ("family",): given.mark(())})
        return check(family(benchmark.family).options, whole, self.problems)

    def _source(
        self, benchmark: Benchmark, document: Document, options: Options | None, data_root: str | Path | None
    ) -> DataSource:
        split, source, data = self.experiment.split, benchmark.source, data_family(benchmark.family)
        if source.kind not in data.kinds:
            message = f"the family {benchmark.family!r} has no such source{hint(source.kind, list(data.kinds))}"
            self.problems.append(document.problem(("source", "kind"), message))
            return source
        if split not in benchmark.splits:
            self.problem(("split",), f"unknown split {split!r}{hint(split, list(benchmark.splits))}")
            return source
        where = "data_root"
        if data_root is not None:
            if not isinstance(source, HubSource | FolderSource):
                self.problem(("benchmark",), f"{benchmark.name!r} makes its own data: data_root has no meaning here")
                return source
            source = FolderSource(path=Path(data_root).expanduser())
        elif isinstance(source, FolderSource):
            where = document.problem(("source", "path"), "").rstrip(": ")
        if split not in data.splits:
            message = f"the family {benchmark.family!r} has no such split{hint(split, list(data.splits))}"
            self.problems.append(document.problem(("splits", split), message))
        elif isinstance(source, FolderSource):
            sets = family(benchmark.family).sets(options) if options else ()
            missing = local_files.missing_data(source.path, data.files(split, sets, training=True))
            self.problems += [f"{where}: {message}" for message in missing]
        elif not isinstance(source, HubSource):
            rows = data.rows(source, split)
            if rows is not None and rows != benchmark.splits[split]:
                message = f"{benchmark.splits[split]} rows are stated; the source makes {rows}"
                self.problems.append(document.problem(("splits", split), message))
        return source

    def _retrain(self, model: Model, options: Options) -> None:
        split, training = self.experiment.split, self.experiment.training
        why = options.needs_retrain
        if why and training.retrain is None and model.published("retrain", split) is None:
            self.problem(("training",), f"retrain: is missing, and model {model.name!r} has no published one: {why}")

    def _judge(self, options: Options) -> None:
        """Whether the family's answers with these options can be judged, where the experiment asks for it."""
        if self.experiment.judge is None:
            return
        benchmark = family(options.family)
        if not isinstance(benchmark, Judged):
            allowed = ", ".join(name for name in families() if isinstance(family(name), Judged)) or "none"
            message = f"answers of the family {options.family!r} cannot be judged; allowed: {allowed}"
            self.problem(("judge",), message)
            return
        sets = benchmark.judged(options)
        if set(sets) != {"forget", "retain"}:
            message = f"with its options, {self.experiment.benchmark!r} generates no answers to be judged"
            self.problem(("judge",), message)

    def _requests(self, benchmark: Benchmark, source: DataSource) -> None:
        """Whether the benchmark has as many requests to forget as the experiment asks for."""
        wanted, data = self.experiment.requests, data_family(benchmark.family)
        if wanted is None:
            return
        if not isinstance(data, HasRequests):
            self.problem(("requests",), f"the family {benchmark.family!r} has one request to forget only")
            return
        requests = data.requests(wanted.order)
        if wanted.count > len(requests):
            self.problem(("requests", "count"), f"{wanted.count}; the family {benchmark.family!r} has {len(requests)}")
            return
        if self.experiment.split != data.splits[0]:
            message = f"{self.experiment.split!r}; the first of several requests is {data.splits[0]!r}"
            self.problem(("split",), message)
        others = requests[1 : wanted.count]
        if isinstance(source, FolderSource):
            self.problems += [
                f"requests: {message}" for message in local_files.missing_data(source.path, data.request_files(others))
            ]
        for request in others:
            if not isinstance(source, HubSource | FolderSource) and data.rows(source, request) == 0:
                self.problem(
                    ("requests", "count"), f"{wanted.count}; the source of {benchmark.name!r} makes no {request!r}"
                )
                return

    def _published(self, benchmark: Benchmark, document: Document, options: Options) -> None:
        metrics = [metric.key for metric in family(benchmark.family).metrics(options)]
        for i, table in enumerate(benchmark.published):
            for method, values in table.values.items():
                for name in values:
                    if name not in metrics:
                        key = ("published", i, "values", method, name)
                        self.problems.append(document.problem(key, f"unknown metric{hint(name, metrics)}"))

    def _shape(self, model: Model, document: Document) -> Shape | None:
        architecture, key = model.architecture, ("architecture",)
        if architecture is None:
            used = checkpoints(model, self.experiment.training, self.experiment.split)
            folders = [checkpoint.folder for checkpoint in used.values() if checkpoint.folder]
            if not folders:
                self.problems.append(document.problem((), "architecture: is missing (no local checkpoint states it)"))
                return None
            architecture, key = local_files.architecture(folders[0]), ("checkpoints",)
            if architecture is None:
                return None  # the missing file is reported with its key
        try:
            return Shape.of(architecture)
        except (ValueError, TypeError) as error:
            self.problems.append(document.problem(key, str(error)))
            return None

    def _layout(self, model: Model | None, shape: Shape | None) -> Layout | None:
        layout = self.experiment.layout
        if isinstance(layout, int):
            known = {1: Layout()} | (model.layouts if model else {})
            if model is None:
                return None
            if layout not in known:
                allowed = ", ".join(map(str, sorted(known)))
                self.problem(("layout",), f"model {model.name!r} has no layout for {layout} ranks; allowed: {allowed}")
                return None
            if known[layout].ranks != layout:
                self.problem(("layout",), f"the model's layout for {layout} ranks has {known[layout].ranks} ranks")
            layout = known[layout]
        if shape:
            for message in sizing.layout_problems(layout, shape):
                self.problem(("layout",), message)
        return layout

    def _place(self, layout: Layout, site: Site | None) -> None:
        """Whether the nodes of ``site``, or this machine, can hold the layout's ranks."""
        if site is None:
            message = sizing.device_problem(layout, self.experiment.runtime.device)
            if message:
                self.problem(("layout",), message)
            return
        try:
            sizing.spread(methods.runtime(layout, self.experiment.runtime), site)
        except ValueError as error:
            key, _, message = str(error).partition(": ")
            self.problem(("layout",) if key == "layout" else ("runtime", key), message)
            return
        for which in ("base", "target", "retrain"):
            section = getattr(self.experiment.training, which)
            if section is None or section.threads is None:
                continue
            try:
                sizing.spread(methods.runtime(layout, self.experiment.runtime, section.threads), site)
            except ValueError as error:
                self.problem(("training", which, "threads"), str(error).partition(": ")[2])

    def _models(self, benchmark: Benchmark, model: Model, document: Document, shape: Shape | None) -> None:
        training, split = self.experiment.training, self.experiment.split
        data = data_family(benchmark.family)
        allowed = data.training_sets(benchmark.source) if benchmark.source.kind in data.kinds else []
        for which in ("base", "target", "retrain"):
            section = getattr(training, which)
            for name in section.data if section else ():
                if name not in allowed:
                    self.problem(("training", which, "data", name), f"unknown set{hint(name, allowed)}")
                elif which != "target" and name in data.forgotten:
                    self.problem(("training", which, "data", name), "holds the forget set, which this model never sees")
        if training.target is None and model.published("target", split) is None:
            self.problem(("training",), f"target: is missing, and model {model.name!r} has no published target")
        published = checkpoints(model, training, split)
        own_tokenizer = training.used and tokenizer_source(training, published) is None
        scratch = training.used and "base" not in published
        if (scratch and model.architecture is None) or (own_tokenizer and model.tokenizer is None):
            self.problem(("model",), f"{model.name!r} has no 'architecture' or no 'tokenizer' to be made from")
        for which in published if own_tokenizer else ():
            message = f"its tokenizer is trained on the data, but {which} is a published checkpoint with its own"
            self.problem(("training", training.used[0]), message)
        if shape:
            self._lengths(model, document, shape)
        for which, checkpoint in published.items():
            if checkpoint.folder:
                missing = local_files.missing_model_files(checkpoint.folder)
                if missing:
                    key = ("checkpoints", which, *((split,) if which == "retrain" else ()), "folder")
                    self.problems.append(document.problem(key, f"{str(checkpoint.folder)!r}: {missing}"))

    def _lengths(self, model: Model, document: Document, shape: Shape) -> None:
        length = self.experiment.data.max_length
        if length > shape.context:
            self.problem(("data", "max_length"), f"{length} tokens; the model's context is {shape.context}")
        if model.tokenizer and model.tokenizer.vocab_size > shape.vocabulary:
            message = f"{model.tokenizer.vocab_size} is more than the architecture's vocab_size, {shape.vocabulary}"
            self.problems.append(document.problem(("tokenizer", "vocab_size"), message))

    def _runs(self) -> list[tuple[Document, Run]]:
        runs: list[tuple[Document, Run]] = []
        defaults = self.document.at("unlearning")
        for i, entry in enumerate(self.experiment.methods):
            try:
                use = MethodUse.model_validate({"method": entry} if isinstance(entry, str) else entry)
            except ValidationError:
                continue  # reported with the experiment's own problems
            key = ("methods", i) if isinstance(entry, str) else ("methods", i, "method")
            found = self._find("methods", use.method, key)
            if found is None:
                continue
            merged = merge(merge(found, defaults.under("training")), self.document.at("methods", i, "overrides"))
            method = check(Method, merged, self.problems)
            if method is None:
                continue
            if method.name != use.method:
                self.problems.append(merged.problem(("name",), f"{method.name!r} must be the file's own name"))
            run = Run(method, use.variant)
            if run.id in {other.id for _, other in runs}:
                self.problem(("methods", i), f"{run.id!r} is there twice; give one of them another 'variant'")
            runs.append((merged, run))
        return runs

    def _methods(self, layout: Layout, shape: Shape | None, runs: list[tuple[Document, Run]]) -> None:
        runtime = methods.runtime(layout, self.experiment.runtime)
        for merged, run in runs:
            for key, message in methods.problems(run.method, runtime, shape):
                document = self.document if methods.experiments_own(key) else merged
                self.problems.append(document.problem(key, message))

    def _alternatives(self, benchmark: Benchmark, source: DataSource, runs: list[tuple[Document, Run]]) -> None:
        """Whether the benchmark has the other answers that methods need."""
        known = data_family(benchmark.family).tokenised_sets(source)
        for merged, run in runs:
            name = run.method.preferred_answers
            if name is not None and name not in known:
                message = f"the family {benchmark.family!r} has no set {name!r} of other answers"
                self.problems.append(merged.problem(("preferred_answers",), message))

    def _relearned(self) -> list[tuple[tuple[str | int, ...], Relearn]]:
        """The attacks that train, with their keys."""
        robustness, key = self.experiment.robustness, ("robustness", "relearn")
        several = isinstance(robustness.relearn, list)
        return [((*key, i) if several else key, attack) for i, attack in enumerate(robustness.relearned)]

    def _relearning(self, topics: int) -> None:
        for key, attack in self._relearned():
            if attack.global_batch < topics:
                message = f"{attack.global_batch} is less than the {topics} topics, of which every batch has a share"
                self.problem((*key, "global_batch"), message)

    def _batches(self, layout: Layout, runs: list[tuple[Document, Run]]) -> None:
        parts: list[tuple[Document, tuple[str | int, ...], Batches]] = [
            (merged, ("training",), run.method.training) for merged, run in runs
        ]
        for which in ("base", "target", "retrain"):
            section = getattr(self.experiment.training, which)
            if section:
                parts.append((self.document, ("training", which), section))
        parts += [(self.document, key, attack) for key, attack in self._relearned()]
        for document, key, part in parts:
            total, micro = part.global_batch, part.micro_batch or 1
            if total % (layout.data * micro):
                message = f"{total} is not a multiple of {layout.data} (data-parallel ranks)"
                if part.micro_batch:
                    message += f" x {micro} (micro_batch)"
                self.problems.append(document.problem((*key, "global_batch"), message))
            if part.optimizer.name == "sgd" and layout.distributed_optimizer:
                message = "'sgd' does not work with the layout's distributed_optimizer; allowed: adamw"
                self.problems.append(document.problem((*key, "optimizer", "name"), message))
