"""Jobs that ask models further benchmarks, which nothing was trained on: what else they still can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.benchmarks import data_family
from pipeline.config.experiment import Config, Utility
from pipeline.config.named_files import CONFIGS
from pipeline.data.settings import FetchedSource, FolderSource, FolderTokenizer, HubSource
from pipeline.hub import local_files
from pipeline.specs import EvaluateSpec, ModelId, PrepareSpec, UtilityBenchmark
from pipeline.workflow.data_jobs import prepare_job
from pipeline.workflow.evaluation_jobs import compared_models, evaluation_job
from pipeline.workflow.jobs import Files, Job, job_of
from pipeline.workflow.paths import Paths
from pipeline.workflow.request_jobs import later_models
from pipeline.workflow.unlearning_jobs import unlearned_models


def asked_models(config: Config) -> list[ModelId]:
    """The models that are asked: target, retrain, and what every method, seed and request made."""
    if not config.utility:
        return []
    return [*compared_models(config), *(model for _, model in unlearned_models(config)), *later_models(config)]


def described_utility(config: Config) -> dict[str, UtilityBenchmark]:
    """The further benchmarks as the report presents them, by name."""
    return {one.benchmark.name: UtilityBenchmark(options=one.options, split=one.split) for one in config.utility}


def utility_folders(config: Config, paths: Paths, model: ModelId) -> dict[str, Path]:
    """By further benchmark, the folder of a model's evaluation."""
    return {name: replace(paths, benchmark=name).evaluation(model) for name in described_utility(config)}


def utility_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """Of each further benchmark, what prepares its questions, and an evaluation of each of ``asked_models``."""
    for one in config.utility:
        there = replace(paths, benchmark=one.benchmark.name)
        source = FetchedSource(path=there.source) if isinstance(one.source, HubSource) else one.source
        sets = one.options.prepared
        own = {"family": one.benchmark.family, "source": source, "forget_split": one.split, "sets": sets}
        trained = {"training": False, "requests": [], "tokenizer": FolderTokenizer(path=paths.data / "tokenizer")}
        prepared = prepare_job(config, paths).spec.model_copy(update={**own, **trained, "output": there.data})
        assert isinstance(prepared, PrepareSpec)
        files: Files = ()
        if isinstance(one.source, FolderSource) and sets:
            files = tuple(local_files.data_files(one.source.path, data_family("lm_eval").files(one.split, sets, False)))
        yield job_of(paths, prepared, files=files, tokenizer=(paths.data / "tokenizer",))
        asked = {"options": one.options, "benchmark": one.benchmark.name, "split": one.split, "retain_evaluation": None}
        for model in asked_models(config):
            job = evaluation_job(config, there, model)
            spec = job.spec.model_copy(update=asked)
            assert isinstance(spec, EvaluateSpec)
            yield job_of(
                paths,
                spec,
                checkpoint=job.reads["checkpoint"],
                tokenizer=(there.data / "tokenizer",),
                sets=(there.data / "manifest.json",),
                tasks=_task_files(one),
                datasets=(paths.datasets / "manifest.json",) if one.options.hub_datasets else (),
            )


def _task_files(one: Utility) -> Files:
    """The files of tasks that the user has written, and of their data beside them; not what Python makes of them when
    a task runs."""
    folder = one.options.include_path
    found = () if folder is None else (CONFIGS / folder).rglob("*")
    return tuple(sorted(path for path in found if path.is_file() and path.parent.name != "__pycache__"))
