"""Jobs that evaluate models, and those that let a language model judge their answers."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.benchmarks.base import Judged
from pipeline.config.experiment import Config
from pipeline.specs import EvaluateSpec, JudgeSpec, ModelId
from pipeline.workflow.data_jobs import published
from pipeline.workflow.data_sets import evaluation_sets
from pipeline.workflow.jobs import Job, job_of
from pipeline.workflow.paths import RETRAIN, TARGET, Paths
from pipeline.workflow.training_jobs import repeated_models, runtime
from pipeline.workflow.unlearning_jobs import models_by_epoch, unlearned_models


def compared_models(config: Config) -> list[ModelId]:
    """The models that unlearned ones are compared with: target and retrain, as far as there are."""
    there = {*config.experiment.training.used, *published(config)}
    return [model for model in (TARGET, RETRAIN) if model.run in there]


def first_models(config: Config) -> list[ModelId]:
    """What is evaluated before any attack and any later request; retrain first, with which the others are compared."""
    unlearned = [model for _, model in unlearned_models(config)]
    return [*reversed(compared_models(config)), *repeated_models(config), *unlearned]


def evaluation_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """An evaluation of each of ``first_models``, and of the epochs on the way to them."""
    for model in (*first_models(config), *models_by_epoch(config)):
        yield evaluation_job(config, paths, model)


def evaluation_job(config: Config, paths: Paths, model: ModelId) -> Job:
    """One model on the benchmark, compared with retrain where there is one."""
    compared = RETRAIN in compared_models(config) and model != RETRAIN
    retrain = paths.evaluation(RETRAIN) if compared else None
    checkpoint = paths.checkpoint(model)
    spec = EvaluateSpec(
        options=config.options,
        benchmark=config.benchmark.name,
        split=config.experiment.split,
        model_id=str(model),
        seed=model.seed,
        checkpoint=checkpoint,
        data=paths.data,
        retain_evaluation=retrain,
        token_budget=config.experiment.evaluation.token_budget,
        generation_token_budget=config.experiment.evaluation.generation_token_budget,
        runtime=runtime(config),
        output=paths.evaluation(model),
    )
    return job_of(
        paths,
        spec,
        # The checkpoints of epochs are one output of the run: a file of a folder is none that Snakemake could ask for.
        checkpoint=(checkpoint if model.epoch is None else paths.epochs(model),),
        tokenizer=(paths.data / "tokenizer",),
        sets=tuple(paths.evaluation_set(name) for name in evaluation_sets(config)),
        retrain=(retrain / "evaluation.json", retrain / "examples.jsonl") if retrain else (),
        datasets=(paths.datasets / "manifest.json",) if config.options.hub_datasets else (),
    )


def judged_models(config: Config) -> list[ModelId]:
    """The models whose answers a language model judges."""
    wanted = config.experiment.judge is not None and isinstance(config.family, Judged)
    return first_models(config) if wanted else []


def judgement_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """A judgement of the answers of each of ``judged_models``."""
    settings, family = config.experiment.judge, config.family
    if settings is None or not isinstance(family, Judged) or paths.cache is None:
        return
    for model in judged_models(config):
        evaluation = paths.evaluation(model)
        spec = JudgeSpec(
            benchmark=config.benchmark.name,
            split=config.experiment.split,
            model_id=str(model),
            seed=model.seed,
            evaluation=evaluation,
            sets=dict(family.judged(config.options)),
            settings=settings,
            cache=paths.cache / "judge",
            output=paths.judgement(model),
        )
        yield job_of(paths, spec, evaluation=(evaluation / "evaluation.json", evaluation / "examples.jsonl"))
