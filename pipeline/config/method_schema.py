"""What a method file may say, and how an experiment trains models and uses methods."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from megatron_ext.config import (
    MOST_THREADS,
    Batching,
    GlobalBatch,
    Layout,
    Optimisation,
    Shares,
    TrainableLayers,
    Training,
)
from megatron_ext.losses import AnyLoss
from megatron_ext.schema import Line, Strict
from megatron_ext.specs import SampledAnswers, Unlearning
from megatron_ext.updates import AnyRule
from pipeline.config.model_schema import Name, kind


class Batches(GlobalBatch, Optimisation):
    micro_batch: int | None = Field(
        None, ge=1, description="default: all of a data-parallel rank's share of the global batch"
    )

    micro_batch_tokens: int | None = Field(None, ge=1, description="bounds a micro-batch too; default: no bound")
    packed: bool = Field(False, description="rows of a micro-batch follow one another, without padding")

    def batching(self, layout: Layout) -> Batching:
        """With what each rank of ``layout`` takes at a time."""
        micro = self.micro_batch or max(1, self.global_batch // layout.data)
        return Batching(
            global_batch=self.global_batch,
            micro_batch=micro,
            micro_batch_tokens=self.micro_batch_tokens,
            packed=self.packed,
        )


class ModelTraining(Batches, Shares, Training):
    """How the base, target or retrain model is trained: shares of tokenised sets, and a number of optimizer steps."""

    threads: int | None = Field(
        None, ge=1, le=MOST_THREADS, description="CPU threads of each rank; default: the experiment's"
    )


class MethodTraining(Batches, Unlearning):
    """How a method takes its steps."""


PreferredAnswers = Annotated[
    Annotated[Literal["idk"], Tag("plain")] | Annotated[SampledAnswers, Tag("mapping")], Discriminator(kind)
]


class Method(Strict):
    """A method file, into which the experiment's ``unlearning`` and the method's own ``overrides`` are merged.

    ``preferred_answers``: other answers to the forget set's prompts, for losses that need them: the tokenised set of
    refusals, or how the target samples them.
    """

    name: Name
    title: Line
    source: Line
    forget: AnyLoss
    retain: AnyLoss | None = None
    rule: AnyRule
    trainable_layers: TrainableLayers | None = None
    preferred_answers: PreferredAnswers | None = None
    training: MethodTraining


class MethodUse(Strict):
    method: str
    variant: Name | None = None
    overrides: dict[str, Any] = {}
