"""What of a training step's specification decides its memory, beside model and layout."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config import Batching, TrainableLayers
from megatron_ext.config.lora import Lora
from megatron_ext.specs import TrainSpec, UnlearnSpec


@dataclass(frozen=True)
class Workload:
    """What of a training step decides its memory, beside model and layout.

    Attributes:
        batching: Its batches.
        vectors: Further gradient vectors of the rule.
        between: Those of them that are made when no backward pass is under way.
        losses: Whose micro-batches go through the pipeline in one pass.
        adam: Whether the optimizer keeps moments.
        trainable_layers: Which part of the model is built.
        lora: The adapters that are trained in the place of weights.
        copies: Whole copies of the weights beside the model; of adapters, where they are trained.
        reference: Whether logits of a reference model are made too, or matrices are copied.
        answers: Sequences of a row: 2 where a preferred answer is read beside its own.
    """

    batching: Batching
    vectors: int = 0
    between: int = 0
    losses: int = 1
    adam: bool = True
    trainable_layers: TrainableLayers | None = None
    lora: Lora | None = None
    copies: int = 0
    reference: bool = False
    answers: int = 1


def workload(spec: TrainSpec | UnlearnSpec, gpus: bool) -> Workload:
    """What of a step's specification decides its memory.

    A copy of the whole model before unlearning counts where it lies beside the model: not on ``gpus`` where it is
    offloaded. Validation of a rule that extrapolates puts the weights of the step aside meanwhile.
    """
    adam = spec.optimizer.name == "adamw"
    if isinstance(spec, TrainSpec):
        return Workload(spec.batching, adam=adam)
    vectors = max(spec.rule.vectors, int(spec.diagnostics and spec.retain_loss is not None))
    between = spec.rule.vectors - spec.rule.vectors_in_passes
    losses = 2 if spec.retain_loss is not None and not (spec.rule.needs_products or spec.diagnostics) else 1
    reference, partial = keeps_reference_model(spec), spec.trainable_layers is not None
    beside = not gpus or spec.runtime.reference_model == "resident"
    aside = spec.validation is not None and spec.rule.extrapolation != 1.0
    copies = 0 if partial else int(reference and beside and spec.lora is None) + int(aside)
    answers = 1 + spec.forget_loss.needs_preferred_answers
    return Workload(
        spec.batching, vectors, between, losses, adam, spec.trainable_layers, spec.lora, copies, reference, answers
    )


def keeps_reference_model(spec: UnlearnSpec) -> bool:
    """Whether a run needs the model before unlearning."""
    return any(loss is not None and loss.needs_reference_model for loss in (spec.forget_loss, spec.retain_loss))
