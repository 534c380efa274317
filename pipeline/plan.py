"""An experiment as jobs: one fully resolved specification each, and the files that it reads.

Pure Python and quick: Snakemake asks it for every rule's input and specification, ``validate`` prints it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_ext.schema import Strict
from megatron_ext.specs import ModelSource, ReferenceSpec, Runtime, Topic, TrainSpec, UnlearnSpec, needed_files
from pipeline import files, methods
from pipeline.benchmarks import family
from pipeline.config import Config, Run
from pipeline.data.sources import tokenised_sets
from pipeline.data.splits import split_names
from pipeline.experiment import checkpoints, tokenizer_source
from pipeline.specs import (
    EvaluateSpec,
    FetchDataSpec,
    FetchedSource,
    FetchSpec,
    FolderSource,
    FolderTokenizer,
    HubSource,
    PrepareSpec,
    Published,
    ReportEntry,
    ReportSpec,
)


@dataclass(frozen=True)
class Job:
    """One run of a step: ``name`` is its folder below the experiment's.

    ``inputs``: the files that it reads, of other jobs and of the user's.
    """

    name: str
    spec: Strict
    inputs: tuple[Path, ...]

    @property
    def ranks(self) -> int:
        runtime: Runtime | None = getattr(self.spec, "runtime", None)
        return runtime.layout.ranks if runtime else 1


def canonical(spec: Strict) -> str:
    """A specification as one line of JSON that is the same for equal specifications."""
    return json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Plan:
    """All jobs of a checked experiment, in an order in which they could run; results go to ``results/<experiment>``."""

    def __init__(self, config: Config, results: Path):
        self.config = config
        self.root = Path(results) / config.experiment.name
        self.cache = Path(results) / "cache"
        self.data = self.root / "data" / config.benchmark.name
        self.source = self.root / "source" / config.benchmark.name
        self._published = checkpoints(config.model, config.experiment.training, config.experiment.split)

    @cached_property
    def jobs(self) -> dict[str, Job]:
        made = [*self._fetched(), *self._data(), *map(self._training, self.trained)]
        made += [*self._references(), *self._unlearned(), *self._evaluations()]
        return {job.name: job for job in [*made, self._report(made)]}

    @property
    def trained(self) -> list[str]:
        """Models that are trained here; a training that nothing uses is not among them."""
        return self.config.experiment.training.used

    @property
    def fetched(self) -> list[str]:
        """Models that are published checkpoints."""
        return list(self._published)

    @property
    def fetches_data(self) -> bool:
        """Whether the benchmark's files come from the hub."""
        return isinstance(self.config.source, HubSource)

    @property
    def evaluated(self) -> list[str]:
        """The models that unlearned ones are compared with."""
        return [which for which in ("target", "retrain") if which in (*self.trained, *self.fetched)]

    @property
    def model_ids(self) -> list[str]:
        """Every model that is evaluated, by the name of its folder."""
        return [job.spec.model_id for job in self.jobs.values() if isinstance(job.spec, EvaluateSpec)]

    @property
    def tokenised_sets(self) -> list[str]:
        return tokenised_sets(self.config.source)

    @property
    def evaluation_sets(self) -> list[str]:
        return list(family(self.config.benchmark.family).sets)

    @cached_property
    def references(self) -> list[str]:
        """The tokenised sets whose log-probabilities under target some method needs."""
        needed = {path for run in self.config.runs for path in self._files(run).values()}
        return [name for name in self.tokenised_sets if self.reference(name) in needed]

    def checkpoint(self, which: str) -> Path:
        return self.root / "models" / which / "checkpoint"

    def tokens(self, name: str) -> Path:
        """The tokenised set of that name."""
        return self.data / "train" / f"{name}.npz"

    def reference(self, name: str) -> Path:
        """The log-probabilities of the tokenised set of that name."""
        return self.root / "reference" / name / "reference.npz"

    def describe(self, name: str) -> str:
        """One line on a job: its step, what it makes and how much it does."""
        spec = self.jobs[name].spec
        if isinstance(spec, TrainSpec):
            return f"{spec.optimizer_steps} steps of {spec.batching.global_batch}"
        if isinstance(spec, UnlearnSpec):
            about = "" if self.config.forget_rows_are_exact else "about "
            return f"{spec.epochs:g} epochs, {about}{self.unlearning_steps(spec)} steps of {spec.batching.global_batch}"
        return {
            "fetch": "published checkpoint",
            "fetch_data": "data set's files",
            "report": f"{len(self.jobs)} jobs' results",
        }.get(spec.step, "")

    def unlearning_steps(self, spec: UnlearnSpec) -> int:
        """Steps of an unlearning job, counted as ``megatron_ext.batches.Alternation`` counts them."""
        steps = max(1, round(spec.epochs * math.ceil(self.config.forget_rows / spec.batching.global_batch)))
        return min(steps, spec.max_steps or steps)

    def _runtime(self) -> Runtime:
        return methods.runtime(self.config.layout, self.config.experiment.runtime)

    def _fetched(self) -> Iterator[Job]:
        source = self.config.source
        if isinstance(source, HubSource):
            spec = FetchDataSpec(
                repository=source.repository,
                revision=source.revision,
                splits=split_names(self.config.experiment.split),
                output=self.source,
            )
            yield Job(f"source/{self.config.benchmark.name}", spec, ())
        for which, checkpoint in self._published.items():
            spec = FetchSpec(
                hub=checkpoint.hub,
                revision=checkpoint.revision,
                folder=checkpoint.folder,
                expected=self.config.model.architecture or {},
                output=self.root / "models" / which,
            )
            own = files.model_files(checkpoint.folder) if checkpoint.folder else ()
            yield Job(f"models/{which}", spec, tuple(own))

    def _data(self) -> Iterator[Job]:
        config, model = self.config, self.config.model
        given = tokenizer_source(config.experiment.training, self._published)
        folder = self.checkpoint(given) if given else None
        source = config.source
        own = files.data_files(source.path, config.experiment.split) if isinstance(source, FolderSource) else []
        if isinstance(source, HubSource):
            source, own = FetchedSource(path=self.source), [self.source / "files", self.source / "manifest.json"]
        spec = PrepareSpec(
            family=config.benchmark.family,
            source=source,
            forget_split=config.experiment.split,
            tokenizer=FolderTokenizer(path=folder) if folder else model.tokenizer,
            template=model.template,
            max_length=config.experiment.data.max_length,
            bad_rows=config.experiment.data.bad_rows,
            cache=self.cache,
            output=self.data,
        )
        yield Job(f"data/{config.benchmark.name}", spec, (*own, *([folder] if folder else [])))

    def _training(self, which: str) -> Job:
        section = getattr(self.config.experiment.training, which)
        based = which != "base" and ("base" in self.trained or "base" in self.fetched)
        if based:
            source = ModelSource(checkpoint=self.checkpoint("base"))
            inputs = [self.checkpoint("base")]
        else:
            source = ModelSource(config=self.config.model.architecture, tokenizer=self.data / "tokenizer")
            inputs = [self.data / "tokenizer"]
        data = {self.tokens(name): share for name, share in section.data.items()}
        spec = TrainSpec(
            model=source,
            data={str(path): share for path, share in data.items()},
            optimizer_steps=section.steps,
            batching=methods.batching(section, self.config.layout),
            length_window=section.length_window,
            optimizer=section.optimizer,
            checkpoint_every=section.checkpoint_every,
            seed=section.seed,
            runtime=self._runtime(),
            output=self.root / "models" / which,
        )
        return Job(f"models/{which}", spec, (*inputs, *data))

    def _references(self) -> Iterator[Job]:
        for name in self.references:
            spec = ReferenceSpec(
                checkpoint=self.checkpoint("target"),
                data=self.tokens(name),
                token_budget=self.config.experiment.evaluation.token_budget,
                runtime=self._runtime(),
                output=self.reference(name).parent,
            )
            yield Job(f"reference/{name}", spec, (spec.checkpoint, spec.data))

    def _unlearned(self) -> Iterator[Job]:
        for run in self.config.runs:
            for seed in self.config.experiment.seeds:
                yield self._unlearning(run, seed)

    def _unlearning(self, run: Run, seed: int) -> Job:
        name = f"unlearned/{run.id}/seed-{seed}"
        files = {"forget_data": self.tokens("forget"), "retain_data": self.tokens("retain"), **self._files(run)}
        spec = UnlearnSpec(
            checkpoint=self.checkpoint("target"),
            topics=[Topic(name="forget", **files)],
            seed=seed,
            output=self.root / name,
            **methods.settings(run.method, self._runtime()),
        )
        return Job(name, spec, (spec.checkpoint, *files.values()))

    def _files(self, run: Run) -> dict[str, Path]:
        """The entries of a topic that a method needs beside its forget and retain set."""
        method = run.method
        known = {"reference": self.reference("forget"), "retain_reference": self.reference("retain")}
        if method.alternatives is not None:
            known["alternatives"] = self.tokens(method.alternatives)
            known["alternatives_reference"] = self.reference(method.alternatives)
        return {key: known[key] for key in needed_files(method.forget, method.rule)}

    def _evaluations(self) -> Iterator[Job]:
        for which in reversed(self.evaluated):
            yield self._evaluation(which, None, self.checkpoint(which))
        for run in self.config.runs:
            for seed in self.config.experiment.seeds:
                folder = self.root / "unlearned" / run.id / f"seed-{seed}"
                yield self._evaluation(f"{run.id}-seed-{seed}", seed, folder / "checkpoint")

    def _evaluation(self, model_id: str, seed: int | None, checkpoint: Path) -> Job:
        experiment, benchmark = self.config.experiment, self.config.benchmark
        compared = "retrain" in self.evaluated and model_id != "retrain"
        retrain = self.root / "evaluation" / "retrain" / benchmark.name if compared else None
        spec = EvaluateSpec(
            family=benchmark.family,
            benchmark=benchmark.name,
            split=experiment.split,
            model_id=model_id,
            seed=seed,
            checkpoint=checkpoint,
            data=self.data,
            retain_evaluation=retrain,
            max_new_tokens=experiment.evaluation.max_new_tokens,
            token_budget=experiment.evaluation.token_budget,
            runtime=self._runtime(),
            output=self.root / "evaluation" / model_id / benchmark.name,
        )
        sets = [self.data / "evaluation" / f"{name}.jsonl" for name in self.evaluation_sets]
        compare = [retrain / name for name in ("evaluation.json", "examples.jsonl")] if retrain else []
        inputs = (checkpoint, self.data / "tokenizer", *sets, *compare)
        return Job(f"evaluation/{model_id}/{benchmark.name}", spec, inputs)

    def _report(self, made: list[Job]) -> Job:
        experiment, benchmark = self.config.experiment, self.config.benchmark
        evaluations = self.root / "evaluation"
        entries = [
            ReportEntry(
                model_id=which,
                kind=which,
                title=which.capitalize(),
                evaluation=evaluations / which / benchmark.name,
                run=self.root / "models" / which,
            )
            for which in self.evaluated
        ]
        entries += [
            ReportEntry(
                model_id=f"{run.id}-seed-{seed}",
                kind="unlearned",
                method=run.method.name,
                title=run.method.title,
                variant=run.variant,
                seed=seed,
                evaluation=evaluations / f"{run.id}-seed-{seed}" / benchmark.name,
                run=self.root / "unlearned" / run.id / f"seed-{seed}",
            )
            for run in self.config.runs
            for seed in experiment.seeds
        ]
        others = {"data": self.data, "base": self.root / "models" / "base"}
        others |= {f"reference/{name}": self.reference(name).parent for name in self.references}
        names = {job.spec.output for job in made}
        spec = ReportSpec(
            family=benchmark.family,
            experiment=experiment.name,
            benchmark=benchmark.name,
            split=experiment.split,
            model=self.config.model.name,
            entries=entries,
            steps={name: folder for name, folder in others.items() if folder in names},
            published=self._published_numbers(),
            config=self.config.resolved(),
            output=self.root / "report",
        )
        recorded = ("summary.json", "provenance.json")
        inputs = [entry.evaluation / name for entry in entries for name in ("evaluation.json", *recorded)]
        inputs += [entry.run / name for entry in entries for name in recorded]
        inputs += [entry.run / "steps.jsonl" for entry in entries if entry.kind == "unlearned"]
        return Job("report", spec, (*inputs, *(folder / "summary.json" for folder in spec.steps.values())))

    def _published_numbers(self) -> list[Published]:
        """The published numbers of this model and split; of two sources for one number, the first of the file."""
        found: dict[tuple[str, str], Published] = {}
        for table in self.config.benchmark.published:
            if (table.model, table.split) == (self.config.model.name, self.config.experiment.split):
                for method, values in table.values.items():
                    for metric, value in values.items():
                        number: dict[str, Any] = {"value": value, "source": table.source}
                        where = {"model": table.model, "split": table.split}
                        found.setdefault((method, metric), Published(method=method, metric=metric, **number, **where))
        return list(found.values())
