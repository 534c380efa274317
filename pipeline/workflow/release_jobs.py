"""Jobs that remove the checkpoints of unlearned models which are not kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config.experiment import Config
from pipeline.specs import ModelId, ReleaseSpec, ReportEntry, ReportSpec
from pipeline.workflow.jobs import Job, job_of
from pipeline.workflow.paths import Paths
from pipeline.workflow.report_job import choice, entries_of
from pipeline.workflow.request_jobs import later_models
from pipeline.workflow.robustness_jobs import attacked_models
from pipeline.workflow.unlearning_jobs import models_by_epoch, unlearned_models

Folders = dict[str, list[Path]]


def release_jobs(config: Config, paths: Paths, made: Sequence[Job]) -> Iterator[Job]:
    """A job for each run and seed whose checkpoints may be removed, after all that reads them.

    Args:
        config: The experiment.
        paths: Its folders.
        made: The jobs before the report.
    """
    keep = config.experiment.keep
    if keep == "all":
        return
    models = [(run, model) for run, model in unlearned_models(config) if keep == "none" or run.swept is not None]
    swept = {str(model): run.swept for run, model in models}
    checkpoints = _checkpoints(config, paths, [model for _, model in models])
    readers = _readers(checkpoints, made)
    entries = [(model, entry) for model, entry in entries_of(config, paths) if str(model) in checkpoints]
    for run, model in models:
        alike = [other for other in swept if keep == "selected" and swept[other] == run.swept] or [str(model)]
        rivals = [entry for other, entry in entries if str(other) in alike]
        spec = ReleaseSpec(
            model_id=str(model),
            checkpoints={name: checkpoints[name] for name in alike},
            readers={name: readers[name] for name in alike},
            choice=_choice(config, paths, rivals) if keep == "selected" else None,
            output=paths.kept(model),
        )
        yield job_of(paths, spec, readers=tuple(readers[str(model)]))


def _checkpoints(config: Config, paths: Paths, models: Sequence[ModelId]) -> Folders:
    """By unlearned model, its checkpoint, those after later requests and of attacks on all of them, and its epochs'."""
    every = [*models, *later_models(config), *attacked_models(config)]
    by_epoch = {(model.run, model.seed) for model in models_by_epoch(config)}
    found = {}
    for model in models:
        own = [paths.checkpoint(one) for one in every if (one.run, one.seed) == (model.run, model.seed)]
        found[str(model)] = [*own, *([paths.epochs(model)] if (model.run, model.seed) in by_epoch else [])]
    return found


def _readers(checkpoints: Folders, made: Sequence[Job]) -> Folders:
    """By unlearned model, the summaries of the jobs that read one of its checkpoints."""
    reading: dict[Path, list[Path]] = {}
    for job in made:
        for path in job.inputs:
            reading.setdefault(path, []).append(job.spec.output / "summary.json")
    return {
        name: list(dict.fromkeys(summary for folder in folders for summary in reading.get(folder, ())))
        for name, folders in checkpoints.items()
    }


def _choice(config: Config, paths: Paths, rivals: Sequence[ReportEntry]) -> ReportSpec:
    """Among which models one is chosen: what the report reads of them, and how it chooses."""
    return ReportSpec(
        options=config.options,
        experiment=config.experiment.name,
        benchmark=config.benchmark.name,
        split=config.experiment.split,
        model=config.model.name,
        entries=list(rivals),
        output=paths.report,
        **choice(config.experiment.select),
    )
