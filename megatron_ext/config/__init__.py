"""Settings that several programs share: layout, runtime, optimizer, schedule, batching, trainable layers.

Settings of one subject (adapters, lean memory, rounding, which step a run ends in) have a file each.

This module imports neither torch nor megatron-core, so that planning can read it on a machine that has neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from megatron_ext.config.lean_memory import MemorySettings
from megatron_ext.schema import Seed, Strict


class Layout(Strict):
    """How a model is spread over ranks: ``tensor x pipeline x data`` ranks in all."""

    tensor: int = Field(1, ge=1)
    pipeline: int = Field(1, ge=1)
    data: int = Field(1, ge=1)
    pipeline_split: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="decoder layers of each pipeline stage, first to last; the default spreads them evenly, "
        "as is done with the layers up to ``trainable_layers.up_to`` in any case",
    )
    expert: int = Field(
        1,
        ge=1,
        description="of a mixture of experts: groups of tensor-parallel ranks that have different experts; within a "
        "group each expert is split over its ranks",
    )
    distributed_optimizer: bool = Field(
        False, description="shard optimizer state and reduced gradients over data-parallel ranks"
    )
    sequence_parallel: bool = Field(
        False, description="in training, split activations between layers over tensor-parallel ranks by position"
    )

    @property
    def ranks(self) -> int:
        """How many ranks the layout needs."""
        return self.tensor * self.pipeline * self.data

    @model_validator(mode="after")
    def _fits(self) -> Layout:
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError("sequence_parallel: needs tensor > 1")
        if self.tensor % self.expert:
            raise ValueError(f"expert: {self.expert} does not divide tensor, {self.tensor}")
        return self


MOST_THREADS = 1024  # of a rank; more than a node has cores


class RuntimeSettings(Strict):
    """Where and how a step runs, but for its layout; results do not depend on it beyond floating-point rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = Field(
        1,
        ge=1,
        le=MOST_THREADS,
        description="CPU threads of each rank; with another number, sums are split and rounded otherwise",
    )
    timeout_seconds: float = Field(
        600.0, gt=0, le=1e9, description="a collective that takes longer fails on every rank"
    )
    recompute_activations: bool = Field(
        False, description="in training, keep only each block's input and compute its activations again for backward"
    )
    reference_model: Literal["resident", "offloaded"] = Field(
        "resident",
        description="where a loss that needs the model before unlearning has its copy: beside the trained one, or on a "
        "GPU in host memory, from where every micro-batch fetches it",
    )
    kernels: Literal["torch", "te"] = Field(
        "torch", description="whose layers compute: torch's own, or Transformer Engine's, on a GPU in bf16"
    )
    deterministic: bool = Field(
        False,
        description="on a GPU, only kernels that add in one order, so that a run repeats to the bit; slower, and an "
        "operation that has none ends the run with its name. On a CPU every run repeats",
    )
    memory: MemorySettings = MemorySettings()

    @model_validator(mode="after")
    def _kernels(self) -> Self:
        if self.kernels == "te" and self.precision != "bf16":
            # Its matrix products would round fp32 to TF32.
            raise ValueError(f"kernels: 'te' needs precision: bf16, given '{self.precision}'; allowed: 'torch'")
        if self.kernels == "te" and self.device == "cpu":
            raise ValueError("kernels: 'te' needs a GPU, and device is 'cpu'; allowed: 'torch'")
        if problem := self.memory.problem(self.precision, self.kernels):
            raise ValueError(problem)
        return self


class Runtime(RuntimeSettings):
    """As ``RuntimeSettings``, with the layout: all that a step is told of where it runs."""

    layout: Layout = Layout()


class Schedule(Strict):
    """Learning rate over optimizer steps: linear warm-up from 0, then the named decay, as in transformers."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    final_fraction: float = Field(0.0, ge=0, le=1, description="of the peak, which the step after the last would have")


class Optimizer(Strict):
    """AdamW or plain gradient descent, its learning rate over the run, and a bound on the direction's norm."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), strict=False
    )
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Schedule = Schedule()
    clip_norm: float | None = Field(None, gt=0, description="bound on the global norm of the update direction")


class Optimisation(Strict):
    """What every program that changes weights is told of its optimizer steps."""

    optimizer: Optimizer
    checkpoint_every: int = Field(0, ge=0, description="steps between resume checkpoints; 0 writes none")
    checkpoint_minutes: float | None = Field(None, gt=0, description="minutes between them, whatever the steps")


class Training(Optimisation):
    """What every training is told of its optimizer steps, and in what order it sees its data."""

    steps: int = Field(ge=1, description="optimizer steps")
    length_window: int = Field(1, ge=1, description="steps whose sequences are sorted by length together")
    seed: Seed = Field(0, description="of the order of sequences, and of weights that are initialised")


class Shares(Strict):
    """Several sets of sequences that every batch is made of."""

    data: dict[str, float] = Field(description="tokenised set -> share of every batch; shares sum to 1", min_length=1)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if any(share <= 0 for share in self.data.values()) or abs(sum(self.data.values()) - 1) > 1e-6:
            raise ValueError(f"data: shares must be positive and sum to 1, given {self.data}")
        return self


class GlobalBatch(Strict):
    """How many sequences an optimizer step takes."""

    global_batch: int = Field(ge=1, description="sequences of one optimizer step, over all ranks")


class Batching(GlobalBatch):
    """How many sequences an optimizer step and a forward pass take."""

    micro_batch: int = Field(ge=1, description="sequences of one forward pass on one data-parallel rank, at most")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="its tokens, padding included, at most, but always one sequence; default: no bound"
    )
    packed: bool = Field(
        False, description="sequences of a forward pass follow one another, instead of being padded to the longest"
    )

    def sequences_of(self, length: int) -> int:
        """How many sequences of ``length`` tokens a forward pass takes."""
        if self.micro_batch_tokens is None:
            return self.micro_batch
        return max(1, min(self.micro_batch, self.micro_batch_tokens // length))


class TrainableLayers(Strict):
    """For losses on hidden states: what of the model is built, and which of its matrices are trained."""

    up_to: int = Field(ge=0, description="decoder block, from 0, whose output the losses see; later ones are not built")
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="decoder blocks that are trained; default: ``up_to`` and up to two before it"
    )
    target_modules: list[Literal["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]] = Field(
        ["down_proj"], min_length=1, description="matrices that are trained in each of them"
    )

    @property
    def trained_layers(self) -> list[int]:
        """Decoder blocks that are trained, with the default filled in."""
        return self.layers_to_transform or list(range(max(0, self.up_to - 2), self.up_to + 1))

    @model_validator(mode="after")
    def _trained(self) -> TrainableLayers:
        if max(self.trained_layers) > self.up_to:
            allowed = f"allowed: 0 to {self.up_to}"
            raise ValueError(f"layers_to_transform: {self.trained_layers} goes beyond up_to: {self.up_to}; {allowed}")
        for key, values in (("layers_to_transform", self.trained_layers), ("target_modules", self.target_modules)):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: {values} names one twice")
        return self


def shared(settings: Strict, kind: type[Strict]) -> dict[str, Any]:
    """The entries of ``settings`` that ``kind``, one of its base classes, declares; to make another model of them."""
    return {name: getattr(settings, name) for name in kind.model_fields}


def even_split(layers: int, stages: int) -> list[int]:
    """Decoder layers of each pipeline stage, as even as possible; earlier stages have the one layer more."""
    each, longer = divmod(layers, stages)
    return [each + (stage < longer) for stage in range(stages)]


def pipeline_split(layers: int, layout: Layout, trainable_layers: TrainableLayers | None = None) -> list[int]:
    """Decoder layers of each pipeline stage.

    Args:
        layers: Decoder layers of the whole model.
        layout: Its ``pipeline_split`` is taken where it is given; otherwise layers are split evenly.
        trainable_layers: With them, only the layers up to ``up_to`` are built, and always split evenly.

    Returns:
        Layers of each stage, first to last.

    Raises:
        ValueError: The layout's own split is not one number a stage that sum to ``layers``, or the model has no layer
            ``up_to``, or fewer layers are built than there are stages.
    """
    if trainable_layers is not None:
        built = trainable_layers.up_to + 1
        if built > layers:
            raise ValueError(
                f"trainable_layers.up_to: {trainable_layers.up_to} is none of the model's {layers} layers "
                f"(0 to {layers - 1})"
            )
        if built < layout.pipeline:
            raise ValueError(f"trainable_layers: {built} layers are built, too few for {layout.pipeline} stages")
        return even_split(built, layout.pipeline)
    split = layout.pipeline_split
    if split is None:
        return even_split(layers, layout.pipeline)
    if len(split) != layout.pipeline or sum(split) != layers:
        raise ValueError(f"pipeline_split: {split} must be {layout.pipeline} numbers that sum to {layers} layers")
    return list(split)


@dataclass(frozen=True)
class RunSettings:
    """What an update rule is told of the run that it belongs to, to say what it does not work with.

    Attributes:
        optimizer: The run's optimizer, with its schedule.
        precision: ``runtime.precision``.
        warmup_epochs: Passes over the forget set during which the learning rate rises.
        diagnostics: Whether the two gradients are kept apart for the step log.
        topics: How many topics take turns.
        forget_loss: The forget loss's ``name``.
        retain_loss: The retain loss's ``name``; None where the method has none.
    """

    optimizer: Optimizer
    precision: Literal["fp32", "bf16"]
    warmup_epochs: float
    diagnostics: bool
    topics: int
    forget_loss: str
    retain_loss: str | None


# Which of a sequence's positions a loss sees: those that predict a labelled token, those whose own token is labelled,
# or all of them.
Positions = Literal["predicting", "labelled", "all"]
