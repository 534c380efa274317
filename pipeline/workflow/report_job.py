"""The job that reports on a whole experiment: a row for each model, and the files that it is read from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_ext.config.selection import BEST_WITHIN_BUDGET, WithinBudget
from pipeline.config.experiment import Config
from pipeline.config.schema import OnTestMetric, Selection
from pipeline.specs import ModelId, Published, ReleaseSpec, ReportEntry, ReportSpec
from pipeline.workflow.data_sets import own_answers_names
from pipeline.workflow.evaluation_jobs import compared_models, judged_models
from pipeline.workflow.jobs import Files, Job, job_of
from pipeline.workflow.paths import BASE, TARGET, Paths
from pipeline.workflow.robustness_jobs import attacks, described_attacks
from pipeline.workflow.training_jobs import repeated_models
from pipeline.workflow.unlearning_jobs import references, sampled_sets, saved_epochs, unlearned_models
from pipeline.workflow.utility_jobs import asked_models, described_utility, utility_folders

RECORDS = ("summary.json", "provenance.json")
RESULTS = ("evaluation.json", "examples.jsonl")
MEASURED = ("evaluation.json", *RECORDS)  # of a further benchmark
LOGS = ("steps.jsonl", "trajectory.jsonl")


def report_job(config: Config, paths: Paths, made: Sequence[Job]) -> Job:
    """The report.

    Args:
        config: The experiment.
        paths: Its folders.
        made: All other jobs.
    """
    experiment = config.experiment
    first = entries_of(config, paths)
    later = [
        (replace(model, request=request), _moved(paths, model, entry, request=request, number=number))
        for model, entry in first
        if model.seed is not None
        for number, request in enumerate(config.requests[1:], 2)
    ]
    attacked = [
        _moved(paths, model, entry, attack=name) for model, entry in (*first, *later) for name in attacks(config)
    ]
    judgements = {model: paths.judgement(model) for model in judged_models(config)}
    folders = {model: utility_folders(config, paths, model) for model in asked_models(config)}
    entries, requested = (
        [
            entry.model_copy(update={"judgement": judgements.get(model), "utility": folders.get(model, {})})
            for model, entry in rows
        ]
        for rows in (first, later)
    )
    spec = ReportSpec(
        options=config.options,
        experiment=experiment.name,
        benchmark=config.benchmark.name,
        split=experiment.split,
        model=config.model.name,
        entries=entries,
        attacks=described_attacks(config),
        attacked=attacked,
        requests=experiment.requests.order if experiment.requests else None,
        later_requests=requested,
        by_epoch=_by_epoch(config, paths, first),
        repeats=_repeats(config, paths),
        steps=_other_steps(config, paths, made),
        published=_published_numbers(config),
        published_of=experiment.report.published_of,
        utility=described_utility(config),
        **choice(experiment.select),
        examples=experiment.report.examples,
        evidence_texts=experiment.report.evidence_texts,
        config=config.resolved(),
        output=paths.report,
    )
    return job_of(paths, spec, **_files(spec, made))


def choice(select: Selection | None) -> dict[str, Any]:
    """How the report marks a point of each sweep."""
    if isinstance(select, OnTestMetric):
        return {"chosen_by": "test_metric", "test_metric": select.test_metric}
    if isinstance(select, WithinBudget):
        return {"chosen_by": BEST_WITHIN_BUDGET, "budget_metric": select.budget.metric}
    return {"chosen_by": select if select == "best-on-validation" else None}


def entries_of(config: Config, paths: Paths) -> list[tuple[ModelId, ReportEntry]]:
    """Target, retrain, and what every run and seed made of target."""
    found = []
    for model in compared_models(config):
        entry = ReportEntry(
            model_id=str(model),
            kind="target" if model == TARGET else "retrain",
            title=model.run.capitalize(),
            evaluation=paths.evaluation(model),
            run=paths.model(model),
        )
        found.append((model, entry))
    for run, model in unlearned_models(config):
        entry = ReportEntry(
            model_id=str(model),
            kind="unlearned",
            method=run.method.name,
            title=run.method.title,
            variant=run.variant,
            swept=run.swept,
            point=dict(run.point),
            seed=model.seed,
            evaluation=paths.evaluation(model),
            run=paths.model(model),
        )
        found.append((model, entry))
    return found


def _moved(
    paths: Paths,
    model: ModelId,
    entry: ReportEntry,
    attack: str | None = None,
    request: str | None = None,
    number: int | None = None,
) -> ReportEntry:
    """The row of what becomes of a model by an attack, or by a later request to forget, which has a number."""
    after = replace(model, attack=attack, request=request or model.request)
    places = {"evaluation": paths.evaluation(after), "run": paths.model(after)}
    return entry.model_copy(
        update={"model_id": str(after), "attack": attack, "request": number or entry.request, **places}
    )


def _repeats(config: Config, paths: Paths) -> list[ReportEntry]:
    """The rows of target and retrain of further seeds, each before and after every attack."""
    models = [replace(m, attack=attack) for m in repeated_models(config) for attack in (None, *attacks(config))]
    judged = judged_models(config)
    return [
        ReportEntry(
            model_id=str(model),
            kind="target" if model.run == TARGET.run else "retrain",
            title=model.run.capitalize(),
            seed=model.seed,
            attack=model.attack,
            evaluation=paths.evaluation(model),
            run=paths.model(model),
            judgement=paths.judgement(model) if model in judged else None,
        )
        for model in models
    ]


def _by_epoch(config: Config, paths: Paths, first: Sequence[tuple[ModelId, ReportEntry]]) -> list[ReportEntry]:
    """The rows of every run's evaluated epochs; a run that ends in its last epoch has been evaluated there already."""
    known, found = {model: entry for model, entry in first}, []
    for run, model in unlearned_models(config) if config.experiment.evaluate_every else []:
        saved, last = saved_epochs(config, run), math.ceil(run.method.training.epochs)
        for epoch in dict.fromkeys([*saved, last]):
            there = replace(model, epoch=epoch) if epoch in saved else model
            places = {"evaluation": paths.evaluation(there), "run": None}
            found.append(known[model].model_copy(update={"model_id": str(there), "epoch": epoch, **places}))
    return found


def _other_steps(config: Config, paths: Paths, made: Sequence[Job]) -> dict[str, Path]:
    """The folders of steps whose times are listed beside those of the rows."""
    others = {"data": paths.data, "base": paths.model(BASE)}
    others |= {f"reference/{name}": paths.reference(name).parent for name in references(config)}
    others |= {f"alternatives/{name}": paths.alternatives(name).parent for name in sampled_sets(config)}
    others |= {f"own_answers/{name}": paths.own_answers(name).parent for name in own_answers_names(config)}
    written = {job.spec.output for job in made}
    return {name: folder for name, folder in others.items() if folder in written}


def _files(spec: ReportSpec, made: Sequence[Job]) -> dict[str, Files]:
    """What the report reads, by what it is for."""
    rows = [*spec.entries, *spec.attacked, *spec.later_requests, *spec.by_epoch, *spec.repeats]
    unlearned = [entry for entry in (*spec.entries, *spec.later_requests) if entry.kind == "unlearned"]
    trains = {attack.name for attack in spec.attacks if attack.kind == "relearn"}
    relearned = [entry.run / "steps.jsonl" for entry in spec.attacked if entry.run and entry.attack in trains]
    files = {
        "evaluations": dict.fromkeys(entry.evaluation / name for entry in rows for name in (*RESULTS, *RECORDS)),
        "runs": [entry.run / name for entry in rows if entry.run for name in RECORDS],
        "logs": [*(entry.run / name for entry in unlearned if entry.run for name in LOGS), *relearned],
        "judgements": [
            entry.judgement / name for entry in rows if entry.judgement for name in ("judgement.json", *RECORDS)
        ],
        "utility": [folder / name for entry in rows for folder in entry.utility.values() for name in MEASURED],
        "steps": [folder / "summary.json" for folder in spec.steps.values()],
        "released": [job.spec.output / "summary.json" for job in made if isinstance(job.spec, ReleaseSpec)],
    }
    return {name: tuple(found) for name, found in files.items()}


def files_of(entry: ReportEntry) -> list[Path]:
    """The files that the report reads of one row."""
    found = [entry.evaluation / name for name in (*RESULTS, *RECORDS)]
    if entry.run is not None:
        logs = LOGS if entry.kind == "unlearned" and entry.attack is None else ()
        found += [entry.run / name for name in (*RECORDS, *logs)]
    if entry.judgement is not None:
        found += [entry.judgement / name for name in ("judgement.json", *RECORDS)]
    return found + [folder / name for folder in entry.utility.values() for name in MEASURED]


def _published_numbers(config: Config) -> list[Published]:
    """The published numbers of this split, of this model or of another that the experiment names, of every source.

    Those of metrics that an experiment's options switch off are left out.
    """
    computed = {metric.key for metric in config.family.metrics(config.options)}
    model = config.experiment.report.published_of or config.model.name
    return [
        Published(method=run, metric=metric, value=value, source=table.source, model=table.model, split=table.split)
        for table in config.benchmark.published
        if (table.model, table.split) == (model, config.experiment.split)
        for run, values in table.values.items()
        for metric, value in values.items()
        if metric in computed
    ]
