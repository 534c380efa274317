"""Jobs of every request to forget after the first: log-probabilities, unlearning and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.config.experiment import Config, Run
from pipeline.specs import ModelId
from pipeline.workflow.data_sets import topics
from pipeline.workflow.evaluation_jobs import evaluation_job
from pipeline.workflow.jobs import Job
from pipeline.workflow.paths import TARGET, Paths
from pipeline.workflow.unlearning_jobs import (
    reference_job,
    reference_sets,
    topic_entries,
    unlearned_models,
    unlearning_job,
)


def later_models(config: Config) -> list[ModelId]:
    """What becomes of target after each request but the first, by every run and seed."""
    models = [model for _, model in unlearned_models(config)]
    return [replace(model, request=request) for model in models for request in config.requests[1:]]


def request_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """All jobs of later requests. One after the other, each request starts from the model before it; growing ones
    start from target."""
    requests = config.experiment.requests
    if requests is None:
        return
    for run, first in unlearned_models(config):
        before = first
        for request in config.requests[1:]:
            model = replace(first, request=request)
            yield from _jobs(config, paths, run, model, before if requests.order == "sustainability" else TARGET)
            before = model


def _jobs(config: Config, paths: Paths, run: Run, model: ModelId, start: ModelId) -> Iterator[Job]:
    """Those of one request, run and seed. Log-probabilities under target are there already."""
    forget = str(model.request)
    (_, retain), *_ = topics(config).values()
    checkpoint, references = paths.checkpoint(start), {}
    own = start != TARGET
    for key, name in reference_sets(config, run, forget, retain).items():
        references[key] = paths.reference(name, model if own else None)
        if own:
            yield reference_job(config, paths, checkpoint, name, model)
    entries = topic_entries(config, run, paths, forget, retain, references)
    yield unlearning_job(config, paths, run, model, checkpoint, {"forget": entries})
    yield evaluation_job(config, paths, model)
