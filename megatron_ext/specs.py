"""What each program of this package is told: strict, fully resolved specifications.

A step is a program with one argument, a ``spec.yaml`` that holds one of the models below. Nothing is looked up
elsewhere: no environment variable and no default file changes what a step does. This module imports neither torch nor
megatron, so that a workflow can be planned and checked on a machine that has neither.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from megatron_ext import losses, updates
from megatron_ext.schema import Strict


class Layout(Strict):
    """How a model is spread over ranks: ``tensor x pipeline x data`` ranks in all."""

    tensor: int = Field(1, ge=1)
    pipeline: int = Field(1, ge=1)
    data: int = Field(1, ge=1)
    pipeline_split: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="decoder layers of each pipeline stage, first to last; the default spreads them evenly"
    )
    distributed_optimizer: bool = Field(
        False, description="shard optimizer state and reduced gradients over data-parallel ranks"
    )

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data


class Runtime(Strict):
    """Where and how a step runs; results do not depend on it beyond floating-point rounding."""

    layout: Layout = Layout()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = Field(1, ge=1, description="CPU threads of each rank")
    timeout_seconds: float = Field(600.0, gt=0, description="a collective that takes longer fails on every rank")


class Schedule(Strict):
    """Learning rate over optimizer steps: linear warm-up from ``peak / warmup_steps``, then the named decay."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    final_fraction: float = Field(0.0, ge=0, le=1, description="of the peak, reached at the last step")


class Optimizer(Strict):
    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), strict=False
    )
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Schedule = Schedule()
    clip_norm: float | None = Field(None, gt=0, description="bound on the global norm of the update direction")


def _works_with(optimizer: Optimizer, layout: Layout) -> None:
    if optimizer.name == "sgd" and layout.distributed_optimizer:
        raise ValueError("optimizer: 'sgd' does not work with layout.distributed_optimizer; allowed: 'adamw'")


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


class Batching(Strict):
    global_batch: int = Field(ge=1, description="sequences of one optimizer step, over all ranks")
    micro_batch: int = Field(ge=1, description="sequences of one forward pass on one data-parallel rank")


class TrainSpec(Strict):
    """Minimise the token-mean negative log-likelihood: from scratch, or fine-tuning."""

    step: Literal["train"] = "train"
    model: ModelSource
    data: dict[str, float] = Field(description="tokenised file -> share of every batch; shares sum to 1", min_length=1)
    optimizer_steps: int = Field(ge=1)
    batching: Batching
    length_window: int = Field(1, ge=1, description="steps whose sequences are sorted by length together")
    optimizer: Optimizer
    checkpoint_every: int = Field(0, ge=0, description="steps between resume checkpoints; 0 writes none")
    seed: int = Field(0, ge=0)
    runtime: Runtime = Runtime()
    output: Path = Field(strict=False, description="folder that receives checkpoint/, steps.jsonl and summary.json")

    @model_validator(mode="after")
    def _shares(self) -> TrainSpec:
        if any(v <= 0 for v in self.data.values()) or abs(sum(self.data.values()) - 1) > 1e-6:
            raise ValueError(f"data: shares must be positive and sum to 1, got {self.data}")
        _works_with(self.optimizer, self.runtime.layout)
        return self


class ReferenceSpec(Strict):
    """Compute the log-probability of every sequence of ``data`` under ``checkpoint`` once."""

    step: Literal["reference"] = "reference"
    checkpoint: Path = Field(strict=False)
    data: Path = Field(strict=False)
    token_budget: int = Field(16384, ge=1, description="tokens, padding included, of one forward pass")
    runtime: Runtime = Runtime()
    output: Path = Field(strict=False, description="folder that receives reference.npz and summary.json")


class UnlearnSpec(Strict):
    """A forget loss, a retain loss and an update rule over paired batches of the two sets."""

    step: Literal["unlearn"] = "unlearn"
    checkpoint: Path = Field(strict=False)
    forget_data: Path = Field(strict=False)
    retain_data: Path = Field(strict=False)
    reference: Path | None = Field(None, strict=False, description="reference.npz of forget_data under the checkpoint")
    forget_loss: losses.AnyLoss
    retain_loss: losses.AnyLoss | None = None
    rule: updates.AnyRule
    epochs: float = Field(gt=0, description="passes over the forget set")
    batching: Batching
    optimizer: Optimizer
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up, added to the schedule's warm-up steps")
    diagnostics: bool = Field(
        False,
        description="keep the two gradients apart for rules that need only their sum, to log norms and alignments "
        "(costs one fp32 vector of the rank's gradient shard)",
    )
    checkpoint_every: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    runtime: Runtime = Runtime()
    output: Path = Field(strict=False)

    @model_validator(mode="after")
    def _needs(self) -> UnlearnSpec:
        if self.forget_loss.needs_reference and self.reference is None:
            raise ValueError(f"forget_loss: {self.forget_loss.name!r} needs 'reference', which is missing")
        if self.rule.needs_retain and self.retain_loss is None:
            raise ValueError(f"rule: {self.rule.name!r} needs a retain loss, which is missing")
        _works_with(self.optimizer, self.runtime.layout)
        return self


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: ``1e-5`` is a float here, a string in YAML 1.1."""


Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read(path: Path, kind: type[Strict]) -> Any:
    """The specification in a program's YAML file; ends the program with what is wrong where it will not do."""
    try:
        return kind.model_validate(yaml.load(Path(path).read_text(encoding="utf-8"), Loader))
    except (OSError, ValueError, yaml.YAMLError) as error:  # pydantic's ValidationError is a ValueError
        raise SystemExit(f"{path}: {error}") from None
