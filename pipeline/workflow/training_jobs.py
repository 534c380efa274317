"""Jobs that train the base, target and retrain model, and what every training step is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ext.config import Runtime, Training, shared
from megatron_ext.specs import ModelSource, TrainSpec
from pipeline.config import methods
from pipeline.config.attack_schema import Relearn
from pipeline.config.experiment import Config
from pipeline.config.method_schema import ModelTraining
from pipeline.specs import ModelId
from pipeline.workflow.data_jobs import published
from pipeline.workflow.jobs import Job, job_of
from pipeline.workflow.paths import BASE, Paths


def runtime(config: Config, threads: int | None = None) -> Runtime:
    """How a step runs that loads a model; ``threads`` of each rank where they are not the experiment's."""
    return methods.runtime(config.layout, config.experiment.runtime, threads)


def has_base(config: Config) -> bool:
    """Whether there is a base model, which target and retrain start from."""
    return "base" in config.experiment.training.used or "base" in published(config)


def repeated_models(config: Config) -> list[ModelId]:
    """Target and retrain with further seeds; the first ones, which unlearning starts from, have none in their names."""
    training = config.experiment.training
    return [ModelId(which, k) for which in ("retrain", "target") for k in range(1, training.repeats)]


def training_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """A job for each model that is trained here, and for each of its repetitions: from the base model where there is
    one, else from random weights."""
    trained = config.experiment.training
    for which in trained.used:
        section: ModelTraining = getattr(trained, which)
        if has_base(config) and which != "base":
            start = paths.checkpoint(BASE)
            source = ModelSource(checkpoint=start)
        else:
            start = paths.data / "tokenizer"
            source = ModelSource(config=config.model.architecture, tokenizer=start)
        data = {paths.tokens(name): share for name, share in section.data.items()}
        shared = paths.trained if trained.shared else None
        for model in [ModelId(which), *(one for one in repeated_models(config) if one.run == which)]:
            own = section.model_copy(update={"seed": section.seed + (model.seed or 0)})
            spec = train_spec(config, paths.model(model), source, own, data, shared=shared)
            yield job_of(paths, spec, start=(start,), data=tuple(data))


def train_spec(
    config: Config,
    output: Path,
    model: ModelSource,
    section: ModelTraining | Relearn,
    data: Mapping[Path, float],
    **more: Any,
) -> TrainSpec:
    """What a training step is told.

    Args:
        config: The experiment.
        output: The step's folder.
        model: What it starts from.
        section: The experiment's settings of this training.
        data: Tokenised file -> its share of every batch.
        **more: Further entries of the specification.
    """
    return TrainSpec(
        model=model,
        data={str(path): share for path, share in data.items()},
        batching=section.batching(config.layout),
        runtime=runtime(config, section.threads if isinstance(section, ModelTraining) else None),
        output=output,
        **shared(section, Training),
        **more,
    )
