"""Jobs that unlearn, for every method and seed, and those that compute log-probabilities for them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from megatron_ext.methods import needed_files
from megatron_ext.specs import AlternativesSpec, ReferenceSpec, SampledAnswers, Topic, UnlearnSpec
from pipeline.benchmarks.request_sets import alternatives_set
from pipeline.config import methods
from pipeline.config.experiment import Config, Run
from pipeline.specs import ModelId
from pipeline.workflow.data_sets import tokenised_sets, topics
from pipeline.workflow.jobs import Job, job_of
from pipeline.workflow.paths import TARGET, Paths
from pipeline.workflow.training_jobs import runtime


def unlearned_models(config: Config) -> list[tuple[Run, ModelId]]:
    """What becomes of target, by every run and seed."""
    return [(run, ModelId(run.id, seed)) for run in config.runs for seed in config.experiment.seeds]


def reference_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """Log-probabilities under target of each set of which some method needs them."""
    for name in references(config):
        yield reference_job(config, paths, paths.checkpoint(TARGET), name)


def alternatives_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """Other answers that target samples, for each forget set and way of sampling that some method asks for."""
    for name, (forget, answers) in sampled_sets(config).items():
        data, checkpoint = paths.tokens(forget), paths.checkpoint(TARGET)
        evaluation = config.experiment.evaluation
        spec = AlternativesSpec(
            checkpoint=checkpoint,
            data=data,
            token_budget=evaluation.generation_token_budget or evaluation.token_budget,
            runtime=runtime(config),
            output=paths.alternatives(name).parent,
            **answers.model_dump(),
        )
        yield job_of(paths, spec, checkpoint=(checkpoint,), data=(data,))


def sampled_sets(config: Config) -> dict[str, tuple[str, SampledAnswers]]:
    """By name of a set of sampled answers, the forget set that has the prompts, and how they are sampled."""
    forgotten = [*(forget for forget, _ in topics(config).values()), *config.requests[1:]]
    return {
        preferred_set(config, answers, forget): (forget, answers)
        for run in config.runs
        for forget in forgotten
        if isinstance(answers := run.method.preferred_answers, SampledAnswers)
    }


def preferred_set(config: Config, answers: str | SampledAnswers, forget: str) -> str:
    """The name of the set of preferred answers to a forget set."""
    if isinstance(answers, str):
        return alternatives_set(answers, forget) if forget in config.requests[1:] else answers
    return f"{forget}-{hashlib.sha256(answers.model_dump_json().encode()).hexdigest()[:8]}"


def preferred_file(config: Config, answers: str | SampledAnswers, forget: str, paths: Paths) -> Path:
    """The set of preferred answers to a forget set."""
    name = preferred_set(config, answers, forget)
    return paths.tokens(name) if isinstance(answers, str) else paths.alternatives(name)


def references(config: Config) -> list[str]:
    """The tokenised sets whose log-probabilities under target some method needs."""
    pairs = list(topics(config).values())
    if config.experiment.requests and config.experiment.requests.order == "scalability":
        pairs += [(request, retain) for request in config.requests[1:] for _, retain in pairs[:1]]
    needed = {name for run in config.runs for pair in pairs for name in reference_sets(config, run, *pair).values()}
    return [name for name in (*tokenised_sets(config), *sampled_sets(config)) if name in needed]


def reference_sets(config: Config, run: Run, forget: str, retain: str) -> dict[str, str]:
    """By entry of a topic, the tokenised set whose log-probabilities the run's method wants there.

    Args:
        config: The experiment.
        run: The method with its settings.
        forget: The topic's forget set.
        retain: The topic's retain set.
    """
    method = run.method
    sets = {"reference_logps": forget, "retain_reference_logps": retain}
    if method.preferred_answers is not None:
        sets["preferred_answers_logps"] = preferred_set(config, method.preferred_answers, forget)
    return {key: sets[key] for key in needed_files(method.forget, method.rule) if key in sets}


def reference_job(config: Config, paths: Paths, checkpoint: Path, name: str, request: ModelId | None = None) -> Job:
    """The log-probabilities of the tokenised set ``name`` under a checkpoint, for a later request or for all runs."""
    data = paths.alternatives(name) if name in sampled_sets(config) else paths.tokens(name)
    spec = ReferenceSpec(
        checkpoint=checkpoint,
        data=data,
        token_budget=config.experiment.evaluation.token_budget,
        runtime=runtime(config),
        output=paths.reference(name, request).parent,
    )
    return job_of(paths, spec, checkpoint=(checkpoint,), data=(data,))


def unlearning_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """What makes target forget the experiment's split, by every run and seed."""
    for run, model in unlearned_models(config):
        wanted = {}
        for name, (forget, retain) in topics(config).items():
            references = {key: paths.reference(of) for key, of in reference_sets(config, run, forget, retain).items()}
            wanted[name] = topic_entries(config, run, paths, forget, retain, references)
        yield unlearning_job(config, paths, run, model, paths.checkpoint(TARGET), wanted)


def topic_entries(
    config: Config, run: Run, paths: Paths, forget: str, retain: str, references: Mapping[str, Path]
) -> dict[str, Path]:
    """The files of a topic: its sets, other answers where the method needs them, and log-probabilities."""
    sets = {"forget_data": paths.tokens(forget), "retain_data": paths.tokens(retain)}
    answers = run.method.preferred_answers
    if answers is not None and "preferred_answers" in needed_files(run.method.forget, run.method.rule):
        sets["preferred_answers"] = preferred_file(config, answers, forget, paths)
    return {**sets, **references}


def unlearning_job(
    config: Config,
    paths: Paths,
    run: Run,
    model: ModelId,
    checkpoint: Path,
    wanted: Mapping[str, Mapping[str, Path]],
) -> Job:
    """The job that makes one unlearned model.

    Args:
        config: The experiment.
        paths: Its folders.
        run: The method with its settings.
        model: What comes of it.
        checkpoint: The model that it starts from.
        wanted: By topic, its files.
    """
    assert model.seed is not None
    spec = UnlearnSpec(
        checkpoint=checkpoint,
        topics=[Topic(name=name, **entries) for name, entries in wanted.items()],
        seed=model.seed,
        saved_epochs=saved_epochs(config, run),
        output=paths.model(model),
        **methods.settings(run.method, runtime(config)),
    )
    files = [(key, path) for entries in wanted.values() for key, path in entries.items()]
    data = tuple(path for key, path in files if not key.endswith("_logps"))
    references = tuple(path for key, path in files if key.endswith("_logps"))
    return job_of(paths, spec, checkpoint=(checkpoint,), data=data, references=references)


def saved_epochs(config: Config, run: Run) -> list[int]:
    """The epochs whose models are evaluated beside what the run ends in, which is its last epoch if none is chosen."""
    every, training = config.experiment.evaluate_every, run.method.training
    if every is None:
        return []
    last = math.ceil(training.epochs)
    chosen = training.validation is not None and training.validation.select != "last"
    return [*range(every.epochs, last, every.epochs), *([last] if chosen else [])]


def models_by_epoch(config: Config) -> list[ModelId]:
    """The saved epochs of every run and seed."""
    return [
        replace(model, epoch=epoch) for run, model in unlearned_models(config) for epoch in saved_epochs(config, run)
    ]


def unlearning_steps(config: Config, spec: UnlearnSpec) -> int:
    """Optimizer steps of an unlearning job."""
    return methods.steps(spec, spec.batching.global_batch, _forget_rows(config, spec))


def steps_per_epoch(config: Config, spec: UnlearnSpec) -> int:
    """Optimizer steps of a pass over the forget set."""
    return methods.steps_of_a_pass(spec, spec.batching.global_batch, _forget_rows(config, spec))


def _forget_rows(config: Config, spec: UnlearnSpec) -> int:
    forget = Path(spec.topics[0].forget_data).stem
    return config.request_rows(forget) if forget in config.requests else config.forget_rows
