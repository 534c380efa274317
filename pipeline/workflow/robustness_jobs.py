"""Jobs that attack every evaluated model, to see whether what it forgot comes back, and evaluate what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megatron_ext.specs import ModelSource, QuantiseSpec
from pipeline.config.attack_schema import Quantise, Relearn
from pipeline.config.experiment import Config
from pipeline.specs import Attack, ModelId
from pipeline.workflow.data_sets import topics
from pipeline.workflow.evaluation_jobs import evaluation_job, first_models
from pipeline.workflow.jobs import Job, job_of
from pipeline.workflow.paths import Paths
from pipeline.workflow.request_jobs import later_models
from pipeline.workflow.training_jobs import train_spec


def attacks(config: Config) -> dict[str, Relearn | Quantise]:
    """What is done to every evaluated model, by name."""
    robustness = config.experiment.robustness
    found: list[Relearn | Quantise] = [*robustness.relearned, *robustness.quantised]
    return {attack.id: attack for attack in found}


def attacked_models(config: Config) -> list[ModelId]:
    """What becomes of every evaluated model by every attack, those after later requests too."""
    models = [*first_models(config), *later_models(config)]
    return [replace(model, attack=name) for model in models for name in attacks(config)]


def robustness_jobs(config: Config, paths: Paths) -> Iterator[Job]:
    """For each of ``attacked_models`` the attack, and its evaluation."""
    known = attacks(config)
    for model in attacked_models(config):
        yield _attack_job(config, paths, model, known[str(model.attack)])
        yield evaluation_job(config, paths, model)


def _attack_job(config: Config, paths: Paths, model: ModelId, attack: Relearn | Quantise) -> Job:
    checkpoint, output = paths.checkpoint(model.before), paths.model(model)
    if isinstance(attack, Quantise):
        # A visible GPU is no reason to use it in an experiment of CPUs.
        on_cpus = attack.backend == "auto" and config.experiment.runtime.device == "cpu"
        backend = "builtin" if on_cpus else attack.backend
        rounding = QuantiseSpec(
            checkpoint=checkpoint, output=output, scheme=attack.scheme, group=attack.group, backend=backend
        )
        return job_of(paths, rounding, checkpoint=(checkpoint,))
    data = [paths.tokens(name) for name in _forgotten(config, model)]
    equal = {path: 1 / len(data) for path in data}
    parts = {str(path): attack.share for path in data}
    spec = train_spec(config, output, ModelSource(checkpoint=checkpoint), attack, equal, parts=parts)
    return job_of(paths, spec, checkpoint=(checkpoint,), data=tuple(data))


def _forgotten(config: Config, model: ModelId) -> list[str]:
    """The tokenised sets that the model was asked to forget: of every topic, or of every request up to its own."""
    requests, names = config.experiment.requests, [forget for forget, _ in topics(config).values()]
    if requests is None or model.request is None:
        return names
    if requests.order == "scalability":  # its request holds those before it
        return [model.request]
    return [*names, *config.requests[1 : config.requests.index(model.request) + 1]]


def described_attacks(config: Config) -> list[Attack]:
    """The attacks as the report presents them."""
    return [
        Attack(name=name, kind="relearn" if isinstance(attack, Relearn) else "quantise", about=_about(attack))
        for name, attack in attacks(config).items()
    ]


def _about(attack: Relearn | Quantise) -> str:
    if isinstance(attack, Relearn):
        steps = f"{attack.steps} steps of {attack.global_batch}"
        rate = f"{attack.optimizer.name}, learning rate {attack.optimizer.learning_rate:g}"
        return f"Fine-tuned on {100 * attack.share:.4g} % of the forget set: {steps}, {rate}"
    scale = "a scale a row" if attack.scheme == "int8" else f"a scale for every {attack.group_size} weights"
    return f"Matrices of the decoder blocks rounded to {attack.scheme}, {scale}"
