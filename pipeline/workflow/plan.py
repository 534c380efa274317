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

from megatron_ext.config import Runtime, Training, shared
from megatron_ext.schema import Strict
from megatron_ext.specs import (
    ModelSource,
    QuantiseSpec,
    ReferenceSpec,
    StepSpec,
    Topic,
    TrainSpec,
    UnlearnSpec,
    needed_files,
)
from pipeline.benchmarks.base import Judged
from pipeline.config import methods
from pipeline.config.checks import Config, Run
from pipeline.config.schema import ModelTraining, Quantise, Relearn, checkpoints, tokenizer_source
from pipeline.data.prepared import HasRequests, Names
from pipeline.data.settings import FetchedSource, FolderSource, FolderTokenizer, HubSource
from pipeline.hub import local_files as files
from pipeline.specs import (
    Attack,
    EvaluateSpec,
    FetchDatasetsSpec,
    FetchDataSpec,
    FetchSpec,
    JudgeSpec,
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
    spec: StepSpec
    inputs: tuple[Path, ...]

    @property
    def ranks(self) -> int:
        return self.spec.ranks


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
        evaluations = list(self._evaluations())
        made += [*self._references(), *self._unlearned(), *evaluations, *self._attacks(evaluations), *self._requests()]
        made += self._judgements(evaluations)
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
    def datasets(self) -> Path | None:
        """What the step that fetches whole data sets writes last; ``None`` where there are none."""
        return self.root / "datasets" / "manifest.json" if self.config.options.hub_datasets else None

    @property
    def evaluated(self) -> list[str]:
        """The models that unlearned ones are compared with."""
        return [which for which in ("target", "retrain") if which in (*self.trained, *self.fetched)]

    @cached_property
    def attacks(self) -> dict[str, Relearn | Quantise]:
        """What is done to every evaluated model, by name."""
        robustness = self.config.experiment.robustness
        return {attack.id: attack for attack in (*robustness.relearned, *robustness.quantised)}

    @property
    def attacked(self) -> list[str]:
        """What becomes of every model under every attack, by the name of its evaluation's folder."""
        names = (name.split("/") for name in self.jobs)
        return [f"{name[1]}.{name[2]}" for name in names if name[0] == "robustness"]

    @property
    def model_ids(self) -> list[str]:
        """Every model that is evaluated, by the name of its folder."""
        return [job.spec.model_id for job in self.jobs.values() if isinstance(job.spec, EvaluateSpec)]

    @property
    def judged(self) -> list[str]:
        """Every model whose answers a language model judges, by the name of its folder."""
        return [job.spec.model_id for job in self.jobs.values() if isinstance(job.spec, JudgeSpec)]

    @property
    def topics(self) -> dict[str, tuple[str, str]]:
        """By topic that is unlearned, its forget and its retain set."""
        return self.config.data.topics(self.config.experiment.split)

    @property
    def tokenised_sets(self) -> list[str]:
        named = self.config.data.tokenised_sets(self.config.source)
        topics = (name for pair in self.topics.values() for name in pair)
        return list(dict.fromkeys([*named, *topics, *self.config.requests[1:]]))

    @property
    def evaluation_sets(self) -> list[str]:
        return list(self.config.family.sets(self.config.options))

    @property
    def data_files(self) -> list[Names]:
        """The files of a hub repository or a folder that preparing the benchmark reads."""
        data, requests = self.config.data, self.config.requests[1:]
        own = data.files(self.config.experiment.split, self.evaluation_sets, training=True)
        return list(dict.fromkeys([*own, *(data.request_files(requests) if isinstance(data, HasRequests) else ())]))

    @property
    def run_ids(self) -> list[str]:
        """The folders of unlearned models, each with a folder for every seed."""
        runs = [run.id for run in self.config.runs]
        return [*runs, *(f"{run}.{request}" for run in runs for request in self.config.requests[1:])]

    @property
    def reference_names(self) -> list[str]:
        """The folders of log-probabilities: of sets under target, and of sets under models of earlier requests."""
        return [job.spec.output.name for job in self.jobs.values() if isinstance(job.spec, ReferenceSpec)]

    @cached_property
    def references(self) -> list[str]:
        """The tokenised sets whose log-probabilities under target some method needs."""
        pairs = list(self.topics.values())
        if self.config.experiment.requests and self.config.experiment.requests.order == "scalability":
            pairs += [(request, retain) for request in self.config.requests[1:] for _, retain in pairs[:1]]
        needed = {path for run in self.config.runs for pair in pairs for path in self._files(run, *pair).values()}
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
        if isinstance(spec, QuantiseSpec):
            return spec.scheme
        if isinstance(spec, TrainSpec):
            return f"{spec.steps} steps of {spec.batching.global_batch}"
        if isinstance(spec, UnlearnSpec):
            about = "" if self.config.forget_rows_are_exact else "about "
            return f"{spec.epochs:g} epochs, {about}{self.unlearning_steps(spec)} steps of {spec.batching.global_batch}"
        return {
            "fetch": "published checkpoint",
            "fetch_data": "data set's files",
            "fetch_datasets": ", ".join(getattr(spec, "datasets", ())),
            "report": f"{len(self.jobs)} jobs' results",
            "judge": self._judge_work(),
        }.get(spec.program, "")

    def unlearning_steps(self, spec: UnlearnSpec) -> int:
        """Steps of an unlearning job, counted as ``megatron_ext.data.sampling.Alternation`` counts them."""
        split = Path(spec.topics[0].forget_data).stem
        rows = self.config.request_rows(split) if split in self.config.requests else self.config.forget_rows
        steps = max(1, round(spec.epochs * math.ceil(rows / spec.batching.global_batch)))
        return min(steps, spec.max_steps or steps)

    def _judge_work(self) -> str:
        settings = self.config.experiment.judge
        if settings is None:
            return ""
        most = "all" if settings.max_examples is None else f"at most {settings.max_examples}"
        return f"{most} answers of each of two sets, by {settings.model}"

    def _runtime(self, threads: int | None = None) -> Runtime:
        return methods.runtime(self.config.layout, self.config.experiment.runtime, threads)

    def _fetched(self) -> Iterator[Job]:
        source = self.config.source
        if isinstance(source, HubSource):
            spec = FetchDataSpec(
                repository=source.repository,
                revision=source.revision,
                files=[list(names) for names in self.data_files],
                output=self.source,
            )
            yield Job(f"source/{self.config.benchmark.name}", spec, ())
        if self.datasets:
            fetched = FetchDatasetsSpec(datasets=self.config.options.hub_datasets, output=self.datasets.parent)
            yield Job("datasets", fetched, ())
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
        own = files.data_files(source.path, self.data_files) if isinstance(source, FolderSource) else []
        if isinstance(source, HubSource):
            source, own = FetchedSource(path=self.source), [self.source / "files", self.source / "manifest.json"]
        spec = PrepareSpec(
            family=config.benchmark.family,
            source=source,
            forget_split=config.experiment.split,
            sets=self.evaluation_sets,
            tokenizer=FolderTokenizer(path=folder) if folder else model.tokenizer,
            template=model.template,
            max_length=config.experiment.data.max_length,
            bad_rows=config.experiment.data.bad_rows,
            requests=list(config.requests[1:]),
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
        return Job(f"models/{which}", self._train_spec(f"models/{which}", source, section, data), (*inputs, *data))

    def _train_spec(
        self, name: str, model: ModelSource, section: ModelTraining | Relearn, data: dict[Path, float], **more: Any
    ) -> TrainSpec:
        """``data``: tokenised file -> its share of every batch."""
        return TrainSpec(
            model=model,
            data={str(path): share for path, share in data.items()},
            batching=section.batching(self.config.layout),
            runtime=self._runtime(section.threads if isinstance(section, ModelTraining) else None),
            output=self.root / name,
            **shared(section, Training),
            **more,
        )

    def _references(self) -> Iterator[Job]:
        for name in self.references:
            yield self._reference(name, self.checkpoint("target"), self.tokens(name))

    def _reference(self, name: str, checkpoint: Path, data: Path) -> Job:
        spec = ReferenceSpec(
            checkpoint=checkpoint,
            data=data,
            token_budget=self.config.experiment.evaluation.token_budget,
            runtime=self._runtime(),
            output=self.reference(name).parent,
        )
        return Job(f"reference/{name}", spec, (checkpoint, data))

    def _unlearned(self) -> Iterator[Job]:
        for run in self.config.runs:
            for seed in self.config.experiment.seeds:
                yield self._unlearning(run, seed)

    def _unlearning(self, run: Run, seed: int) -> Job:
        name = f"unlearned/{run.id}/seed-{seed}"
        files = {}
        for topic, (forget, retain) in self.topics.items():
            own = {"forget_data": self.tokens(forget), "retain_data": self.tokens(retain)}
            files[topic] = own | self._files(run, forget, retain)
        spec = UnlearnSpec(
            checkpoint=self.checkpoint("target"),
            topics=[Topic(name=topic, **own) for topic, own in files.items()],
            seed=seed,
            output=self.root / name,
            **methods.settings(run.method, self._runtime()),
        )
        return Job(name, spec, (spec.checkpoint, *(path for own in files.values() for path in own.values())))

    def _requests(self) -> Iterator[Job]:
        """Every request to forget after the first: log-probabilities under the model that it starts from, where a
        method needs them, unlearning, and evaluation."""
        requests = self.config.experiment.requests
        if requests is None:
            return
        sequential = requests.order == "sustainability"
        (_, retain), *_ = self.topics.values()
        for run in self.config.runs:
            for seed in self.config.experiment.seeds:
                before = run.id
                for request in self.config.requests[1:]:
                    own = f"{run.id}.{request}"
                    start = self.root / "unlearned" / before / f"seed-{seed}" / "checkpoint"
                    start = start if sequential else self.checkpoint("target")
                    place = f"{own}.seed-{seed}." if sequential else ""
                    needed = self._files(run, request, retain, place)
                    sets = {"reference_logps": request, "retain_reference_logps": retain}
                    if sequential:
                        for key in sets.keys() & needed.keys():
                            yield self._reference(f"{place}{sets[key]}", start, self.tokens(sets[key]))
                    topic = {"forget_data": self.tokens(request), "retain_data": self.tokens(retain), **needed}
                    spec = UnlearnSpec(
                        checkpoint=start,
                        topics=[Topic(**topic)],
                        seed=seed,
                        output=self.root / "unlearned" / own / f"seed-{seed}",
                        **methods.settings(run.method, self._runtime()),
                    )
                    yield Job(f"unlearned/{own}/seed-{seed}", spec, (start, *topic.values()))
                    yield self._evaluation(f"{own}-seed-{seed}", seed, spec.output / "checkpoint")
                    before = own

    def _files(self, run: Run, forget: str, retain: str, place: str = "") -> dict[str, Path]:
        """The entries of a topic that a method needs beside its forget and retain set. ``place``: what stands before
        the names of log-probabilities that are not target's."""
        method = run.method
        known = {
            "reference_logps": self.reference(f"{place}{forget}"),
            "retain_reference_logps": self.reference(f"{place}{retain}"),
        }
        if method.preferred_answers is not None:
            known["preferred_answers"] = self.tokens(method.preferred_answers)
            known["preferred_answers_logps"] = self.reference(method.preferred_answers)
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
            options=self.config.options,
            benchmark=benchmark.name,
            split=experiment.split,
            model_id=model_id,
            seed=seed,
            checkpoint=checkpoint,
            data=self.data,
            retain_evaluation=retrain,
            token_budget=experiment.evaluation.token_budget,
            runtime=self._runtime(),
            output=self.root / "evaluation" / model_id / benchmark.name,
        )
        sets = [self.data / "evaluation" / f"{name}.jsonl" for name in self.evaluation_sets]
        compare = [retrain / name for name in ("evaluation.json", "examples.jsonl")] if retrain else []
        datasets = [self.datasets] if self.datasets else []
        inputs = (checkpoint, self.data / "tokenizer", *sets, *compare, *datasets)
        return Job(f"evaluation/{model_id}/{benchmark.name}", spec, inputs)

    def _attacks(self, evaluations: list[Job]) -> Iterator[Job]:
        """For each model that is evaluated and each attack: what is done, and the evaluation of what comes of it."""
        for model in [job.spec for job in evaluations]:
            for name, attack in self.attacks.items():
                job = self._attack(f"robustness/{model.model_id}/{name}", model.checkpoint, attack)
                yield job
                yield self._evaluation(f"{model.model_id}.{name}", model.seed, job.spec.output / "checkpoint")

    def _attack(self, name: str, checkpoint: Path, attack: Relearn | Quantise) -> Job:
        if isinstance(attack, Quantise):
            # A visible GPU is no reason to use it in an experiment of CPUs.
            backend = attack.backend
            if backend == "auto" and self.config.experiment.runtime.device == "cpu":
                backend = "builtin"
            how = {"scheme": attack.scheme, "group": attack.group, "backend": backend}
            return Job(name, QuantiseSpec(checkpoint=checkpoint, output=self.root / name, **how), (checkpoint,))
        data = [self.tokens(forget) for forget, _ in self.topics.values()]
        parts = {str(path): attack.share for path in data}
        equal = {path: 1 / len(data) for path in data}
        spec = self._train_spec(name, ModelSource(checkpoint=checkpoint), attack, equal, parts=parts)
        return Job(name, spec, (checkpoint, *data))

    def _about(self, attack: Relearn | Quantise) -> str:
        """One line on what an attack does."""
        if isinstance(attack, Relearn):
            steps = f"{attack.steps} steps of {attack.global_batch}"
            rate = f"{attack.optimizer.name}, learning rate {attack.optimizer.learning_rate:g}"
            return f"Fine-tuned on {100 * attack.share:.4g} % of the forget set: {steps}, {rate}"
        scale = "a scale a row" if attack.scheme == "int8" else f"a scale for every {attack.group_size} weights"
        return f"Matrices of the decoder blocks rounded to {attack.scheme}, {scale}"

    def _judgements(self, evaluations: list[Job]) -> Iterator[Job]:
        settings, family = self.config.experiment.judge, self.config.family
        if settings is None or not isinstance(family, Judged):
            return
        for evaluation in (job.spec for job in evaluations):
            spec = JudgeSpec(
                benchmark=evaluation.benchmark,
                split=evaluation.split,
                model_id=evaluation.model_id,
                seed=evaluation.seed,
                evaluation=evaluation.output,
                sets=dict(family.judged(self.config.options)),
                settings=settings,
                cache=self.cache / "judge",
                output=self.root / "judge" / evaluation.model_id / evaluation.benchmark,
            )
            inputs = (evaluation.output / "evaluation.json", evaluation.output / "examples.jsonl")
            yield Job(f"judge/{evaluation.model_id}/{evaluation.benchmark}", spec, inputs)

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
        attacks = [
            Attack(name=name, kind="relearn" if isinstance(attack, Relearn) else "quantise", about=self._about(attack))
            for name, attack in self.attacks.items()
        ]
        attacked = [
            entry.model_copy(
                update={
                    "model_id": f"{entry.model_id}.{name}",
                    "attack": name,
                    "evaluation": evaluations / f"{entry.model_id}.{name}" / benchmark.name,
                    "run": self.root / "robustness" / entry.model_id / name,
                }
            )
            for entry in entries
            for name in self.attacks
        ]
        later_requests = [
            entry.model_copy(
                update={
                    "model_id": f"{run}.{request}-seed-{entry.seed}",
                    "request": k,
                    "evaluation": evaluations / f"{run}.{request}-seed-{entry.seed}" / benchmark.name,
                    "run": self.root / "unlearned" / f"{run}.{request}" / f"seed-{entry.seed}",
                }
            )
            for entry in entries
            if entry.kind == "unlearned"
            for run in [entry.model_id.removesuffix(f"-seed-{entry.seed}")]
            for k, request in enumerate(self.config.requests[1:], 2)
        ]
        judgements = {job.spec.model_id: job.spec.output for job in made if isinstance(job.spec, JudgeSpec)}
        entries = [entry.model_copy(update={"judgement": judgements.get(entry.model_id)}) for entry in entries]
        others = {"data": self.data, "base": self.root / "models" / "base"}
        others |= {f"reference/{name}": self.reference(name).parent for name in self.references}
        names = {job.spec.output for job in made}
        spec = ReportSpec(
            options=self.config.options,
            experiment=experiment.name,
            benchmark=benchmark.name,
            split=experiment.split,
            model=self.config.model.name,
            entries=entries,
            attacks=attacks,
            attacked=attacked,
            requests=experiment.requests.order if experiment.requests else None,
            later_requests=later_requests,
            steps={name: folder for name, folder in others.items() if folder in names},
            published=self._published_numbers(),
            config=self.config.resolved(),
            output=self.root / "report",
        )
        recorded = ("summary.json", "provenance.json")
        shown = [*entries, *attacked, *later_requests]
        inputs = [entry.evaluation / name for entry in shown for name in ("evaluation.json", *recorded)]
        inputs += [entry.run / name for entry in shown for name in recorded]
        logs = ("steps.jsonl", "trajectory.jsonl")
        inputs += [
            entry.run / name for entry in (*entries, *later_requests) if entry.kind == "unlearned" for name in logs
        ]
        judged = ("judgement.json", *recorded)
        inputs += [entry.judgement / name for entry in entries if entry.judgement for name in judged]
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
