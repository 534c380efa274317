"""What the steps of an experiment cost on GPUs: memory, operations, bytes moved, time and disk, and which layouts fit.

Memory is counted (`pipeline.config.memory`). Time is operations at the share of a GPU's peak that its table says, bytes
that ranks exchange at the speed of its link, and files at the disk's. Rows are as long as ``data.max_length``, so all
of it is a bound for shorter ones. Imports neither torch nor megatron-core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from megatron_ext.config import Layout
from megatron_ext.schema import Strict
from megatron_ext.specs import TrainSpec, UnlearnSpec
from pipeline.config import auto_layout, memory
from pipeline.config.auto_layout import NODE
from pipeline.config.load import CONFIGS
from pipeline.config.located_yaml import ConfigError, Document, explain, read
from pipeline.config.memory import Memory
from pipeline.config.workload import workload
from pipeline.workflow import resources
from pipeline.workflow.plan import Plan
from pipeline.workflow.resources import ModelStep
from pipeline.workflow.unlearning_jobs import unlearning_steps

TABLE = CONFIGS / "gpus.yaml"


class Gpu(Strict):
    """What a type of GPU can do; ``measured`` names the numbers that are no assumptions."""

    memory_gib: float = Field(gt=0)
    bf16_tflops: float = Field(gt=0)
    fp32_tflops: float = Field(gt=0)
    reached: float = Field(gt=0, le=1)
    link_gb_s: float = Field(gt=0)
    network_gb_s: float = Field(gt=0)
    disk_gb_s: float = Field(gt=0)
    host_gb_s: float = Field(50, gt=0)
    measured: list[str] = []


@dataclass(frozen=True)
class Cost:
    """What a step costs.

    Attributes:
        name: The job's folder.
        memory: Bytes of the largest rank, as the experiment has it.
        recomputed: The same with recomputed activations.
        operations: Floating-point operations over all ranks.
        moved: Bytes that the busiest rank sends to others.
        seconds: Of the whole step.
        disk: Bytes of what is written: a checkpoint, those of saved epochs, and two resume states of all ranks where
            there are any.
    """

    name: str
    memory: Memory
    recomputed: Memory
    operations: float
    moved: float
    seconds: float
    disk: float


def gpus(file: Path = TABLE) -> dict[str, Gpu]:
    """The table of GPU types.

    Raises:
        ConfigError: With everything that is wrong with the file.
    """
    document, found, problems = read(file), dict[str, Gpu](), list[str]()
    for name, entry in document.data.items():
        own: Document = document.at(name)
        try:
            found[str(name)] = Gpu.model_validate(entry)
        except ValidationError as error:
            problems += explain(error, Gpu, own)
    if problems or not found:
        raise ConfigError(problems or [f"{file}: names no GPU"])
    return found


def costs(plan: Plan, gpu: Gpu, node: int = NODE) -> list[Cost]:
    """What each step with a model costs; seeds of a method, which cost the same, each by themselves."""
    return [_cost(plan, name, spec, gpu, node) for name, spec in model_steps(plan)]


def model_steps(plan: Plan) -> Iterator[tuple[str, ModelStep]]:
    """The steps that run a model on ranks."""
    for job in plan.jobs.values():
        if isinstance(job.spec, ModelStep):
            yield job.name, job.spec


def step_memory(plan: Plan, spec: ModelStep, recompute: bool | None = None) -> Memory:
    """Bytes of the step's largest rank on GPUs; ``recompute`` in place of the experiment's own."""
    shape, length, runtime = plan.config.shape, plan.config.experiment.data.max_length, spec.runtime
    if isinstance(spec, TrainSpec | UnlearnSpec):
        if recompute is not None:
            runtime = runtime.model_copy(update={"recompute_activations": recompute})
        return memory.training(workload(spec, gpus=True), runtime, shape, length)
    return memory.scoring(runtime.layout, shape, runtime.precision, max(length, *resources.budgets(spec)))


def _cost(plan: Plan, name: str, spec: ModelStep, gpu: Gpu, node: int) -> Cost:
    layout, precision = spec.runtime.layout, spec.runtime.precision
    operations, moved = resources.operations(plan, spec), moved_bytes(plan, spec)
    own, recomputed = step_memory(plan, spec), step_memory(plan, spec, recompute=True)
    peak = gpu.bf16_tflops if precision == "bf16" else gpu.fp32_tflops
    link = gpu.link_gb_s if layout.ranks <= node else gpu.network_gb_s
    seconds = operations / (layout.ranks * peak * 1e12 * gpu.reached) + moved / (link * 1e9)
    seconds += resources.generation_seconds(plan, spec, gpus=True)
    weights = plan.config.shape.parameters * (2 if precision == "bf16" else 4)
    files, kept = weights, 0
    if isinstance(spec, TrainSpec | UnlearnSpec):
        steps = _optimizer_steps(plan, spec)
        seconds += steps * 2 * own.host / (gpu.host_gb_s * 1e9)  # an offloaded optimizer reads and writes all of it
        state, count = _state_bytes(spec, own), resources.states_written(spec, steps, seconds)
        written = weights * (1 + (len(spec.saved_epochs) if isinstance(spec, UnlearnSpec) else 0))
        files += written + state * count
        kept = written + 2 * state * bool(spec.checkpoint_every or spec.checkpoint_minutes)
    return Cost(name, own, recomputed, operations, moved, seconds + files / (gpu.disk_gb_s * 1e9), kept)


def _state_bytes(spec: TrainSpec | UnlearnSpec, held: Memory) -> int:
    """Bytes of all ranks' resume state: what the optimizer keeps, and trained weights that do not follow from it."""
    runtime = spec.runtime
    layout, lean = runtime.layout, runtime.memory
    weights = held.gradients * (2 if runtime.precision == "bf16" else 4) // (2 if lean.gradients == "bf16" else 4)
    follow = runtime.precision == "bf16" and lean.main_weights and lean.optimizer != "precision-aware"
    writing = layout.ranks if layout.distributed_optimizer else layout.ranks // layout.data
    return writing * (held.optimizer + held.host * 12 // 16 + (0 if follow else weights))


def _optimizer_steps(plan: Plan, spec: ModelStep) -> int:
    if isinstance(spec, TrainSpec):
        return spec.steps
    return unlearning_steps(plan.config, spec) if isinstance(spec, UnlearnSpec) else 0


def moved_bytes(plan: Plan, spec: ModelStep) -> float:
    """Bytes that a rank gives to collectives and sends in a training step's whole run: 0 in scoring.

    A block all-reduces its output twice forward and twice backward over tensor-parallel ranks, with recomputation twice
    more. A stage sends each micro-batch's states and their gradient. Gradients are reduced once for each loss that is
    taken apart, and with the distributed optimizer weights are gathered.
    """
    if not isinstance(spec, TrainSpec | UnlearnSpec):
        return 0.0
    shape, layout, length = plan.config.shape, spec.runtime.layout, plan.config.experiment.data.max_length
    width = 2 if spec.runtime.precision == "bf16" else 4
    work = workload(spec, gpus=True)
    terms, gradients = 1, 1
    if isinstance(spec, UnlearnSpec):
        terms = 1 + (spec.retain_loss is not None) + spec.forget_loss.needs_preferred_answers
        gradients = spec.rule.gradients
    apart = 2 if work.vectors and terms > 1 else 1
    states = width * shape.hidden * (spec.batching.global_batch // layout.data) * length * terms * gradients
    layers = shape.layers if work.trainable_layers is None else work.trainable_layers.up_to + 1
    moved = 0.0
    if layout.tensor > 1:
        moved += states * -(-layers // layout.pipeline) * (6 if spec.runtime.recompute_activations else 4)
    if layout.pipeline > 1:
        moved += 2 * states
    if layout.data > 1:
        aligned = max(stage.aligned(layout) for stage in memory.stages(layout, shape, work.trainable_layers, work.lora))
        each = 2 if spec.runtime.memory.gradients == "bf16" else 4
        moved += aligned * (each * gradients * apart + width * layout.distributed_optimizer)
    return moved * _optimizer_steps(plan, spec)


def recommended(plan: Plan, ranks: int, gpu_memory: float, node: int = NODE) -> tuple[Layout, int] | None:
    """What ``auto_layout.recommended`` says of a plan's experiment."""
    config = plan.config
    runs = [run.method for run in config.runs]
    return auto_layout.recommended(config.experiment, runs, config.shape, ranks, gpu_memory, node)
