"""What each program of this package is told: strict, fully resolved specifications.

A step is a program with one argument, a ``spec.yaml`` that holds one of the models below. Nothing is looked up
elsewhere: no environment variable and no default file changes what a step does. This module imports neither torch nor
megatron, so that a workflow can be planned and checked on a machine that has neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, model_validator

from megatron_ext import losses, methods, updates
from megatron_ext.config import (
    Batching,
    Optimisation,
    Optimizer,
    RunSettings,
    Runtime,
    Shares,
    TrainableLayers,
    Training,
)
from megatron_ext.config.lora import Lora
from megatron_ext.config.quantisation import Quantisation
from megatron_ext.config.selection import Validation
from megatron_ext.schema import Seed, Strict
from megatron_ext.schema.renamed_keys import renamed
from megatron_ext.schema.safe_yaml import Loader


def _works_with(optimizer: Optimizer, runtime: Runtime) -> None:
    if optimizer.name == "sgd" and runtime.layout.distributed_optimizer:
        raise ValueError("optimizer: 'sgd' does not work with layout.distributed_optimizer; allowed: 'adamw'")
    if problem := runtime.memory.optimizer_problem(optimizer.name, runtime.layout.distributed_optimizer):
        raise ValueError(f"runtime.memory.optimizer: {problem}")


class StepSpec(Strict):
    """What one run of a step's program is told; every specification is a subclass.

    ``program`` names the step's program: a subclass narrows it to a ``Literal`` with one value.
    """

    program: str
    output: Path = Field(strict=False, description="folder that receives what the step writes")

    @property
    def ranks(self) -> int:
        """Processes that run the step's program together."""
        return 1

    @property
    def threads(self) -> int:
        """CPU threads of each of them."""
        return 1


S = TypeVar("S", bound=StepSpec)


class ModelStepSpec(StepSpec):
    """A step that loads a model, on as many ranks as its layout has."""

    runtime: Runtime = Runtime()

    @property
    def ranks(self) -> int:
        return self.runtime.layout.ranks

    @property
    def threads(self) -> int:
        return self.runtime.threads


class ModelSource(Strict):
    """Exactly one of: ``checkpoint``, a Hugging Face folder; ``config``, a Hugging Face config to initialise from."""

    checkpoint: Path | None = Field(None, strict=False)
    config: dict[str, Any] | None = None
    tokenizer: Path | None = Field(
        None, strict=False, description="folder whose tokenizer files go with the output; default: the checkpoint's"
    )

    @model_validator(mode="after")
    def _one(self) -> ModelSource:
        if (self.checkpoint is None) == (self.config is None):
            raise ValueError("give exactly one of 'checkpoint' and 'config'")
        return self


class TrainSpec(ModelStepSpec, Shares, Training):
    """Minimise the token-mean negative log-likelihood: from scratch, or fine-tuning. ``data`` names tokenised files."""

    program: Literal["train"] = "train"
    model: ModelSource
    parts: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        {}, description="tokenised file -> share of its rows, drawn by the seed, that is used; default: every row"
    )
    batching: Batching
    shared: Path | None = Field(
        None,
        strict=False,
        description="folder of trained models, by what decides their weights; default: none",
    )
    output: Path = Field(strict=False, description="folder that receives checkpoint/, steps.jsonl and summary.json")

    @model_validator(mode="after")
    def _parts(self) -> Self:
        unknown = [name for name in self.parts if name not in self.data]
        if unknown:
            raise ValueError(f"parts: {unknown[0]!r} is not in 'data'; allowed: {', '.join(self.data)}")
        _works_with(self.optimizer, self.runtime)
        return self


class QuantiseSpec(StepSpec, Quantisation):
    """Round a checkpoint's matrices to few bits, and write what they then are into a checkpoint of the same types."""

    program: Literal["quantise"] = "quantise"
    checkpoint: Path = Field(strict=False)
    output: Path = Field(strict=False, description="folder that receives checkpoint/ and summary.json")


class ReferenceSpec(ModelStepSpec):
    """Compute the log-probability of every sequence of ``data`` under ``checkpoint`` once."""

    program: Literal["reference"] = "reference"
    checkpoint: Path = Field(strict=False)
    data: Path = Field(strict=False)
    token_budget: int = Field(16384, ge=1, description="tokens of one forward pass")
    output: Path = Field(strict=False, description="folder that receives reference.npz and summary.json")


class SampledAnswers(Strict):
    """How a model samples other answers to the forget set's prompts."""

    per_row: int = Field(5, ge=1, description="answers to each prompt, of which a step uses one")
    max_new_tokens: int = Field(200, ge=1, description="of an answer, at most, its closing token not counted")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability that is drawn from")
    top_k: int | None = Field(None, ge=1, description="tokens that are drawn from; default: all")


class AlternativesSpec(ModelStepSpec, SampledAnswers):
    """Sample other answers to the prompts of ``data`` from ``checkpoint``, which end as those of ``data`` do."""

    program: Literal["alternatives"] = "alternatives"
    checkpoint: Path = Field(strict=False)
    data: Path = Field(strict=False)
    seed: Seed = Field(0, description="of the draws")
    token_budget: int = Field(16384, ge=1, description="positions of the key-value cache of answers computed at once")
    output: Path = Field(strict=False, description="folder that receives alternatives.npz and summary.json")


class Topic(Strict):
    """A forget and a retain set that belong together, with what was computed of them under the checkpoint.

    ``reference_logps`` and ``preferred_answers_logps``: log-probabilities of ``forget_data`` and ``preferred_answers``;
    ``preferred_answers``: other answers to the forget set's prompts, equally many of each row, row by row;
    ``retain_reference_logps``: log-probabilities of ``retain_data``, of which rules learn its loss before unlearning.
    """

    name: str = "forget"
    forget_data: Path = Field(strict=False)
    retain_data: Path = Field(strict=False)
    reference_logps: Path | None = Field(None, strict=False)
    preferred_answers: Path | None = Field(None, strict=False)
    preferred_answers_logps: Path | None = Field(None, strict=False)
    retain_reference_logps: Path | None = Field(None, strict=False)


class Unlearning(Optimisation):
    """What every unlearning is told of its optimizer steps, and of what is measured meanwhile."""

    epochs: float = Field(gt=0, le=1e6, description="passes over the forget set")
    max_steps: int | None = Field(None, ge=1, description="bound on the optimizer steps, over all topics")
    steps_per_epoch: Literal["pass", "trainer"] = Field(
        "pass", description="a smaller last batch ends each pass, or steps are those of transformers' Trainer"
    )
    accumulation: int | None = Field(
        None, ge=1, description="micro-batches of a step in Trainer's run; global_batch / accumulation rows each"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up, added to the schedule's warm-up steps")
    diagnostics: bool = Field(
        False,
        description="keep the two gradients apart for rules that need only their sum, to log norms and alignments "
        "(costs one fp32 vector of the rank's gradient shard)",
    )
    validation: Validation | None = None
    lora: Lora | None = None


class UnlearnSpec(ModelStepSpec, Unlearning):
    """A forget loss, a retain loss and an update rule over paired batches of the two sets.

    Several topics take turns, a step each.
    """

    program: Literal["unlearn"] = "unlearn"
    checkpoint: Path = Field(strict=False)
    topics: list[Topic] = Field(min_length=1)
    forget_loss: losses.AnyLoss
    retain_loss: losses.AnyLoss | None = None
    rule: updates.AnyRule
    trainable_layers: TrainableLayers | None = None
    batching: Batching
    seed: Seed = 0
    saved_epochs: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="epochs, in order, whose checkpoints are written too: epochs/epoch-<number>"
    )

    @model_validator(mode="after")
    def _fits(self) -> UnlearnSpec:
        names = [topic.name for topic in self.topics]
        if len(set(names)) < len(names):
            raise ValueError(f"topics: {names} names one twice")
        for topic in self.topics:
            missing = [key for key in methods.needed_files(self.forget_loss, self.rule) if getattr(topic, key) is None]
            if missing:
                raise ValueError(f"topics: {topic.name!r}: {missing[0]!r} is missing, which the method needs")
            if topic.preferred_answers is not None and not self.forget_loss.needs_preferred_answers:
                raise ValueError(
                    f"topics: {topic.name!r}: the loss {self.forget_loss.name!r} reads no 'preferred_answers'"
                )
        if problems := self.method_problems():
            raise ValueError("; ".join(problems))
        if self.saved_epochs != sorted(set(self.saved_epochs)):
            raise ValueError(f"saved_epochs: {self.saved_epochs} must be in order, each once")
        if self.saved_epochs and self.validation is not None and not isinstance(self.validation.select, str):
            raise ValueError("saved_epochs: a run with a budget may stop before them; allowed: []")
        _works_with(self.optimizer, self.runtime)
        return self

    def method_problems(self) -> list[str]:
        """What does not fit together in the method and its settings: messages that begin with the key."""
        found = methods.problems(self.forget_loss, self.retain_loss, self.rule, self.trainable_layers)
        names = [topic.name for topic in self.topics]
        for key, loss in (("forget_loss", self.forget_loss), ("retain_loss", self.retain_loss)):
            found += [f"{key}.{text}" for text in loss.problems(names)] if loss is not None else []
        if self.validation is not None and self.trainable_layers is not None:
            built = f"layers 0 to {self.trainable_layers.up_to} only, which give no probabilities; allowed: null"
            found.append(f"validation: is given, but the method's 'trainable_layers' builds {built}")
        if self.lora is not None:
            found += self.lora.problems(self.trainable_layers, self.runtime.kernels)
        return found + self._trainer_problems() + self.rule.problems(self.run_settings())

    def _trainer_problems(self) -> list[str]:
        """What does not fit together in ``steps_per_epoch`` and ``accumulation``."""
        batch, accumulation = self.batching.global_batch, self.accumulation
        if self.steps_per_epoch == "pass":
            return [] if accumulation is None else [f"accumulation: {accumulation} without steps_per_epoch: 'trainer'"]
        if accumulation is None:
            return ["accumulation: is missing, which steps_per_epoch: 'trainer' needs"]
        found = []
        if batch % accumulation:
            found.append(f"accumulation: {accumulation} does not divide global_batch: {batch}")
        if len(self.topics) > 1:
            found.append(f"steps_per_epoch: 'trainer' with {len(self.topics)} topics; allowed: 'pass'")
        return found

    def run_settings(self) -> RunSettings:
        """What the rule is told of this run."""
        return RunSettings(
            optimizer=self.optimizer,
            precision=self.runtime.precision,
            warmup_epochs=self.warmup_epochs,
            diagnostics=self.diagnostics,
            topics=len(self.topics),
            forget_loss=self.forget_loss.name,
            retain_loss=None if self.retain_loss is None else self.retain_loss.name,
        )


def epoch_folder(epoch: int) -> str:
    """The name of the checkpoint of an epoch, counted from 1, in the folder ``epochs`` of a run."""
    return f"epoch-{epoch}"


def read(path: Path, kind: type[S]) -> S:
    """The specification in a program's YAML file; ends the program with what is wrong where there is something."""
    try:
        values, _, old = renamed("specification", yaml.load(Path(path).read_text(encoding="utf-8"), Loader))
        if old:
            raise ValueError("\n".join(f"{'.'.join(map(str, key))}: {message}" for key, message in old))
        return kind.model_validate(values)
    except (OSError, ValueError, yaml.YAMLError) as error:  # pydantic's ValidationError is a ValueError
        raise SystemExit(f"{path}: {error}") from None
