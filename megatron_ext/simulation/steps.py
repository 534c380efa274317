"""One optimizer step of a specification on a pretended rank."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from megatron.core.optimizer.cpu_offloading.hybrid_optimizer import HybridDeviceOptimizer
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from megatron_ext.config.lean_memory import MemorySettings
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.data.sequences import Sequences
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.losses.nll import NLL
from megatron_ext.model import adapters
from megatron_ext.model.build import LanguageModel, build
from megatron_ext.simulation.fake_ranks import pretended, received_shapes
from megatron_ext.simulation.recorder import Message, Recorder, storage_bytes
from megatron_ext.specs import TrainSpec, UnlearnSpec
from megatron_ext.training import gradients, optimizer
from megatron_ext.training.loss_terms import LossTerm
from megatron_ext.training.trainer import Trainer
from megatron_ext.training.unlearning import reference_model
from megatron_ext.updates import Products, StepPosition
from megatron_ext.updates.ofmu import OFMU
from megatron_ext.updates.weighted_sum import WeightedSum

LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Simulated:
    """What a rank held and exchanged in a step.

    Attributes:
        stage: Its pipeline stage.
        shapes: How often it has a parameter of a name (layers' numbers left out) and shape.
        weights: Bytes of its weights.
        gradients: Of the buffers of gradients.
        optimizer: Of the optimizer's state.
        reference: Of copies of weights before unlearning.
        vectors: Of further gradients that the rule keeps when the step is over.
        host: Bytes in host memory: an offloaded optimizer's state, and the gradients that it is given.
        peak: The most bytes beside ``host`` that existed at a time, from the first forward pass to the new weights.
        messages: What it exchanged in the step.
    """

    stage: int
    shapes: Mapping[tuple[str, tuple[int, ...]], int]
    weights: int
    gradients: int
    optimizer: int
    reference: int
    vectors: int
    host: int
    peak: int
    messages: Mapping[Message, int]


def distinct_ranks(spec: TrainSpec | UnlearnSpec) -> list[int]:
    """A rank of each pipeline stage; all ranks of a stage build the same shapes and exchange the same messages.

    Only which parameters a piece of the optimizer's state begins and ends in differs, which is a few numbers.
    """
    layout = spec.runtime.layout
    return [stage * layout.tensor * layout.data for stage in range(layout.pipeline)]


def problem(spec: TrainSpec | UnlearnSpec) -> str | None:
    """Why a step cannot be simulated, beginning with the key; None where it can."""
    runtime = spec.runtime
    if runtime.kernels != "torch":
        return f"runtime.kernels: '{runtime.kernels}' is not simulated; allowed: 'torch'"
    if runtime.memory.optimizer == "precision-aware":
        return "runtime.memory.optimizer: 'precision-aware' is not simulated; allowed: 'resident', 'offload'"
    return None


def simulate(spec: TrainSpec | UnlearnSpec, hf_config: Mapping[str, Any], length: int, rank: int) -> Simulated:
    """Build a rank's stage, its gradients and its optimizer, and take a step, without one number.

    Args:
        spec: The step's specification, for which ``problem`` found none; its files are not read.
        hf_config: The model's Hugging Face config.
        length: Tokens of every row, all of which but the first are labelled.
        rank: Which of the layout's ranks.

    Returns:
        What the rank held and exchanged.
    """
    memory = spec.runtime.memory
    with pretended(spec.runtime, rank) as (ranks, recorder), _offloaded(recorder, memory.optimizer == "offload"):
        model = build(hf_config, ranks, getattr(spec, "trainable_layers", None), spec.runtime)
        lora = getattr(spec, "lora", None)
        if lora is not None:
            adapters.add(model, lora)
        own, before = recorder.held, None
        if isinstance(spec, UnlearnSpec):
            with recorder.elsewhere(spec.runtime.reference_model == "offloaded"):
                before = reference_model(spec, model, ranks, lambda: build(hf_config, ranks))
        copies = recorder.held - own
        batching = spec.batching
        trainer = Trainer(
            model,
            ranks,
            spec.optimizer,
            batching.micro_batch,
            before,
            batching.micro_batch_tokens,
            memory,
            batching.packed,
        )
        optimizer.step(trainer.optimizer, memory)  # which makes what the optimizer keeps
        with _disable_current_modes():
            _ = trainer.accumulator.space._tensor_runs  # from real numbers of rows, which are few
        recorder.begin()
        _step(trainer, spec, ranks, length)
        return _simulated(model, trainer, recorder, copies, ranks)


@contextmanager
def _offloaded(recorder: Recorder, active: bool) -> Iterator[None]:
    """Within the context, what the optimizer makes lies in the host's memory.

    A parameter at a time has another type there. What is copied without waiting is converted on the GPU.
    """
    if not active:
        yield
        return

    build_, step_ = optimizer.build, optimizer.step

    def made(*given: Any) -> Any:
        with recorder.elsewhere(True):
            return build_(*given)

    def moved(whole: Any, memory: MemorySettings) -> None:
        with recorder.elsewhere(True):
            step_(whole, memory)
        groups = [group for _, inner in optimizer.inner_optimizers(whole) for group in inner.param_groups]
        recorder.passing(4 * max((value.numel() for group in groups for value in group["params"]), default=0))

    with mock.patch.object(optimizer, "build", made), mock.patch.object(optimizer, "step", moved):
        yield


def _step(trainer: Trainer, spec: TrainSpec | UnlearnSpec, ranks: Ranks, length: int) -> None:
    chunk = {"cpu": gradients._CHUNK["cuda"]}  # an operation costs the same here, whatever its size
    with (
        received_shapes(trainer.accumulator, length, trainer.model.config.hidden_size),
        mock.patch.dict(gradients._CHUNK, chunk),
    ):
        if isinstance(spec, TrainSpec):
            trainer.step([_term("loss", NLL(), spec.batching.global_batch, length)], WeightedSum(), 1e-5)
            return
        terms = list(_terms(spec, length))
        state, whole = spec.rule.start(1.0), lambda: terms[-1]
        if isinstance(spec.rule, OFMU):
            state["phase"] = float(spec.rule.inner_steps)  # the larger of its two kinds of steps
        with mock.patch.object(Products, "cosine", 0.5):  # all products read as 1: as if the gradients were parallel
            trainer.step(terms, spec.rule, 1e-5, spec.diagnostics, state, StepPosition(), whole, {})


def _terms(spec: UnlearnSpec, length: int) -> Iterator[LossTerm]:
    rows = spec.batching.global_batch
    preferred = {row: row for row in range(rows)} if spec.forget_loss.needs_preferred_answers else None
    yield _term("forget_loss", spec.forget_loss, rows, length, preferred, spec.topics[0].name)
    if spec.retain_loss is not None:
        yield _term("retain_loss", spec.retain_loss, rows, length, None, spec.topics[0].name)


def _term(
    name: str, loss: Any, rows: int, length: int, preferred: dict[int, int] | None = None, topic: str = ""
) -> LossTerm:
    data = SequenceDataset([Sequences.pack([([0] * length, 1)] * rows)], np.zeros(rows))
    return LossTerm(name, loss, data, range(rows), preferred, topic)


def _simulated(model: LanguageModel, trainer: Trainer, recorder: Recorder, copies: int, ranks: Ranks) -> Simulated:
    weights = storage_bytes(model.parameters())
    buffers = storage_bytes(buffer.grad_data for buffer in trainer.accumulator.ddp.buffers)
    kept = storage_bytes(_optimizer_tensors(trainer, weights_of=model))
    offloaded = trainer.memory_settings.optimizer == "offload"
    shapes = Counter((LAYER.sub(".*.", name), tuple(value.shape)) for name, value in model.named_parameters())
    return Simulated(
        stage=ranks.pipeline_rank,
        shapes=shapes,
        weights=weights,
        gradients=buffers,
        optimizer=0 if offloaded else kept,
        reference=copies,
        vectors=storage_bytes(piece for vector in trainer.accumulator.space._spare for piece in vector),
        host=kept if offloaded else 0,
        peak=recorder.peak,
        messages=dict(recorder.messages),
    )


def _optimizer_tensors(trainer: Trainer, weights_of: LanguageModel) -> Iterator[Tensor]:
    """What the optimizer keeps beside the model's weights: moments, fp32 weights, gradients in host memory."""
    own = {value.untyped_storage()._cdata for value in weights_of.parameters()}
    for _, inner in optimizer.inner_optimizers(trainer.optimizer):
        kept = [value for group in inner.param_groups for value in group["params"]]
        kept += [value for state in inner.state.values() for value in state.values() if isinstance(value, Tensor)]
        kept += inner.cpu_copy_map_grad.values() if isinstance(inner, HybridDeviceOptimizer) else []
        yield from (value for value in kept if value.untyped_storage()._cdata not in own)
