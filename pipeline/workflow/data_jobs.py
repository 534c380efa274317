"""Jobs that bring data and published models, and the one that prepares the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ext.checkpoint.adapter_settings import CONFIG, WEIGHTS
from pipeline.config.experiment import Config
from pipeline.config.model_schema import Checkpoint
from pipeline.config.schema import checkpoints, tokenizer_source
from pipeline.data.prepared import ReadsUserFiles
from pipeline.data.settings import FetchedSource, FilesSource, FolderSource, FolderTokenizer, HubSource, LocalSource
from pipeline.hub import local_files
from pipeline.specs import FetchDatasetsSpec, FetchDataSpec, FetchSpec, ModelId, PrepareSpec
from pipeline.workflow.data_sets import data_files, evaluation_sets, own_answers_names, trains
from pipeline.workflow.jobs import Files, Job, job_of
from pipeline.workflow.paths import Paths


def published(config: Config) -> dict[str, Checkpoint]:
    """The published checkpoints that the experiment uses, by ``base``, ``target`` and ``retrain``."""
    return checkpoints(config.model, config.experiment.training, config.retrain_split)


def fetches_data(config: Config) -> bool:
    """Whether the benchmark's files come from the hub."""
    return isinstance(config.source, HubSource) and bool(data_files(config))


def fetch_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """What brings the benchmark's files, whole data sets, and published models."""
    if isinstance(config.source, HubSource) and fetches_data(config):
        files = [list(names) for names in data_files(config)]
        source = config.source
        data = FetchDataSpec(repository=source.repository, revision=source.revision, files=files, output=paths.source)
        yield job_of(paths, data)
    if config.hub_datasets:
        yield job_of(paths, FetchDatasetsSpec(datasets=config.hub_datasets, output=paths.datasets))
    for which, checkpoint in published(config).items():
        expected = config.model.architecture or (config.described if checkpoint.hub else None)
        yield fetch_model_job(paths, ModelId(which), checkpoint, expected)


def fetch_model_job(
    paths: Paths, model: ModelId, checkpoint: Checkpoint, expected: Mapping[str, Any] | None = None
) -> Job:
    """What brings a published model.

    Args:
        paths: The experiment's folders.
        model: What it is there.
        checkpoint: Where it is published.
        expected: Entries that its ``config.json`` must have, because the plan was checked against them.
    """
    spec = FetchSpec(**checkpoint.model_dump(), expected=dict(expected or {}), output=paths.model(model))
    files = local_files.model_files(checkpoint.folder) if checkpoint.folder else ()
    beside = [checkpoint.adapter / name for name in (CONFIG, WEIGHTS)] if checkpoint.adapter else []
    return job_of(paths, spec, files=(*files, *beside))


def prepare_job(config: Config, paths: Paths) -> Job:
    """What tokenises the benchmark's text, with the tokenizer of a published model where there is one."""
    model, experiment = config.model, config.experiment
    which = tokenizer_source(experiment.training, published(config))
    folder = paths.checkpoint(ModelId(which)) if which else None
    tokenizer = FolderTokenizer(path=folder) if folder else model.tokenizer
    assert tokenizer is not None  # checked with the experiment
    source: LocalSource
    if isinstance(config.source, HubSource):
        source = FetchedSource(path=paths.source)
    elif isinstance(config.source, FilesSource):
        source = config.source.answered(paths.own_answers)
    else:
        source = config.source
    spec = PrepareSpec(
        family=config.benchmark.family,
        source=source,
        forget_split=experiment.split,
        sets=evaluation_sets(config),
        training=trains(config),
        tokenizer=tokenizer,
        template=config.template,
        max_length=experiment.data.max_length,
        bad_rows=experiment.data.bad_rows,
        requests=list(config.requests[1:]),
        cache=paths.cache,
        output=paths.data,
    )
    files = _source_files(config, paths)
    own = tuple(paths.own_answers(name) for name in own_answers_names(config))
    return job_of(paths, spec, files=files, answers=own, tokenizer=(folder,) if folder else ())


def _source_files(config: Config, paths: Paths) -> Files:
    """The user's files, or what fetching them writes; none where the benchmark makes its own data."""
    if isinstance(config.source, FolderSource):
        return tuple(local_files.data_files(Path(config.source.path), data_files(config)))
    if isinstance(config.data, ReadsUserFiles):
        return tuple(config.data.source_files(config.source, config.experiment.split))
    return (paths.source / "files", paths.source / "manifest.json") if fetches_data(config) else ()
