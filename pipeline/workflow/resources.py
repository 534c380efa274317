"""What a job asks a cluster for: nodes, GPUs, cores, memory and time, from its specification and the site.

Time is a bound, not a forecast: `START` seconds, the bytes of checkpoints and resume states at `DISK`, and the step's
floating-point operations at a speed that any node should reach, with every sequence taken for as long as it may be.

- A token costs 6 operations a parameter where it is trained on (8 with recomputed activations) and 2 where it is only
  scored or generated.
- A rank does `GPU_SPEED` operations a second on a GPU, and `CPU_SPEED` for each of its threads on a CPU. A pipeline of
  p stages that takes m micro-batches a step needs (m + p - 1) / m times as long.
- A weight is rounded to few bits at `QUANTISED`, by one CPU thread.
- A generated token of a batch costs `DECODE` for each layer, and reading all weights at `WEIGHTS`.

The sum is multiplied by the site's `time_factor` and by the attempt, gets the seconds between Slurm's warning and the
limit, and is rounded up to `ROUND` minutes.

Memory of a node is, for each rank, what `pipeline.config.memory` counts: on a CPU all of it; for a GPU what stays there
through a step, since its resume state and a copy of the weights before unlearning lie in host memory; and `PROCESS`,
what a process needs before it has a model. `SUPERVISORS` is for Snakemake on the first node. The sum is multiplied by
the attempt, and never more than the node has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_ext.config import Layout
from megatron_ext.specs import AlternativesSpec, QuantiseSpec, ReferenceSpec, TrainSpec, UnlearnSpec
from pipeline.benchmarks import family
from pipeline.config import memory, sizing
from pipeline.config.site import Site
from pipeline.config.sizing import Nodes
from pipeline.config.workload import keeps_reference_model, workload
from pipeline.data import general_prompts
from pipeline.specs import EvaluateSpec, OwnAnswersSpec
from pipeline.workflow.jobs import Job
from pipeline.workflow.plan import Plan
from pipeline.workflow.unlearning_jobs import steps_per_epoch, unlearning_steps

ModelStep = TrainSpec | UnlearnSpec | AlternativesSpec | OwnAnswersSpec | ReferenceSpec | EvaluateSpec

START = 300.0  # container, imports and rendezvous, on a file system that others use too
OTHER = 300.0  # the work of a step without a model
DISK = 200e6  # bytes a second
GPU_SPEED = {"bf16": 50e12, "fp32": 10e12}
CPU_SPEED = 25e9
DECODE = {True: 1e-3, False: 0.0}  # on GPUs, kernels take longer to start than to run; on CPUs operations decide
WEIGHTS = {True: 500e9, False: 5e9}
QUANTISED = 4e6  # weights a second
ROUND = 5

# What a rule's resources are, by the names that Snakemake's Slurm executor reads.
KEYS = (
    *("runtime", "mem_mb", "cpus_per_task", "nodes", "mpi", "tasks_per_node", "tasks", "tasks_per_gpu", "gres"),
    *("slurm_partition", "slurm_account", "qos", "constraint", "slurm_extra"),
)

GIB = 2**30
PROCESS = {True: 8 * GIB, False: 2 * GIB}
SUPERVISORS = GIB // 2
OTHER_MEMORY = {"prepare": 4 * GIB, "report": 2 * GIB}
HELD = 8  # fp32 copies of the matrix that is being rounded


@dataclass(frozen=True)
class Needs:
    """What the first attempt of a job needs.

    Attributes:
        nodes: How its ranks are spread.
        cores: CPU cores of a rank.
        memory: Bytes on each node.
        seconds: A bound on its time.
        warn: Seconds before the time limit at which it is told, so that it can write a resume state; 0 where it writes
            none.
    """

    nodes: Nodes
    cores: int
    memory: int
    seconds: float
    warn: int

    def minutes(self, site: Site, attempt: int = 1) -> int:
        """The time limit."""
        seconds = self.seconds * site.time_factor * attempt + self.warn
        return ROUND * math.ceil(seconds / 60 / ROUND)

    def memory_mb(self, site: Site, attempt: int = 1) -> int:
        """Memory of each node, in MiB as Slurm counts."""
        wanted = math.ceil(self.memory * attempt / 2**20)
        return min(wanted, site.memory_per_node_mb or wanted)


def needs(plan: Plan, site: Site, job: Job) -> Needs:
    """What a job needs.

    Args:
        plan: The experiment's jobs.
        site: The cluster.
        job: One of the jobs.

    Raises:
        ValueError: The job's ranks cannot be spread over the cluster's nodes.
    """
    spec = job.spec
    if isinstance(spec, QuantiseSpec):
        return _quantising(plan, site, spec)
    if not isinstance(spec, ModelStep):
        size = OTHER_MEMORY.get(spec.program, 2 * GIB) + SUPERVISORS
        return Needs(Nodes(1, 1, 0), 1, size, START + OTHER, 0)
    nodes = sizing.spread(spec.runtime, site)
    gpus = bool(nodes.gpus)
    state = memory.held(spec, plan.config.shape, gpus=True) if isinstance(spec, TrainSpec | UnlearnSpec) else 0
    warn = max(site.warn_seconds, 60 + math.ceil(state / DISK)) if state else 0
    size = nodes.ranks * (rank_bytes(plan, spec, gpus) + PROCESS[gpus]) + SUPERVISORS
    return Needs(nodes, spec.runtime.threads, size, START + _seconds(plan, spec, gpus, state), warn)


def _quantising(plan: Plan, site: Site, spec: QuantiseSpec) -> Needs:
    """One process, which holds a matrix at a time; bitsandbytes wants a GPU where steps run on GPUs. What it reads and
    writes it reads and writes once more in copying."""
    settings, shape = plan.config.experiment.runtime, plan.config.shape
    gpu = spec.backend == "bitsandbytes" and sizing.on_gpus(settings.device, site)
    held = max(shape.hidden * shape.ffn, shape.hidden * shape.heads * shape.head_dim)
    weights = shape.parameters * (2 if settings.precision == "bf16" else 4)
    rounded = sum(sum(shape.matrices(layer).values()) for layer in range(shape.layers))
    seconds = START + 3 * weights / DISK + rounded / QUANTISED
    memory = HELD * 4 * held + PROCESS[gpu] + SUPERVISORS
    return Needs(Nodes(1, 1, int(gpu)), 1, memory, seconds, 0)


def requested(wanted: Needs, site: Site, attempt: int = 1) -> dict[str, int | str | None]:
    """What a job needs as resources of a Snakemake rule.

    Several ranks are tasks that the step starts itself (``mpi``). The executor wants more than one task a node for
    these; with one, the number of all tasks is given instead. It would take that for the tasks of each GPU, hence
    ``tasks_per_gpu``, and leaves it to Slurm how they are spread, hence ``--ntasks-per-node``.

    Args:
        wanted: What the first attempt needs.
        site: The cluster.
        attempt: Which attempt it is, from 1; later ones ask for more.

    Returns:
        A value for each of ``KEYS``; ``None`` for what is not asked for.
    """
    nodes = wanted.nodes
    several, alone = nodes.total > 1, nodes.ranks == 1
    extra = [site.extra] if site.extra else []
    if wanted.warn:
        # Not SIGTERM: it goes to every process of a step, and ends the one that serves the files of a rank's container.
        extra.append(f"--signal=URG@{wanted.warn}")
    if several and alone:
        extra.append("--ntasks-per-node=1")
    kind = f"gpu:{site.gpu_type}" if site.gpu_type else "gpu"
    return {
        "runtime": wanted.minutes(site, attempt),
        "mem_mb": wanted.memory_mb(site, attempt),
        "cpus_per_task": wanted.cores,
        "nodes": nodes.count,
        "mpi": "srun" if several else None,
        "tasks_per_node": nodes.ranks if several and not alone else None,
        "tasks": nodes.total if several and alone else None,
        "tasks_per_gpu": 0 if several and alone else None,
        "gres": f"{kind}:{nodes.gpus}" if nodes.gpus else None,
        "slurm_partition": site.partition,
        "slurm_account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "slurm_extra": " ".join(extra) or None,
    }


def problems(plan: Plan, site: Site, where: str) -> list[str]:
    """What the cluster cannot give to any attempt of a job, a message for each kind of step.

    Args:
        plan: The experiment's jobs.
        site: The cluster.
        where: The file that describes it.
    """
    limit = site.memory_per_node_mb
    if limit is None:
        return []
    worst: dict[str, tuple[int, str]] = {}
    for job in plan.jobs.values():
        wanted = math.ceil(needs(plan, site, job).memory / 2**20)
        if wanted > limit:
            worst[job.spec.program] = max(worst.get(job.spec.program, (0, "")), (wanted, job.name))
    return [
        f"{where}: memory_per_node_mb: {limit}; {name} needs {wanted} on each node" for wanted, name in worst.values()
    ]


def rank_bytes(plan: Plan, spec: ModelStep, gpus: bool) -> int:
    """Bytes of host memory of a step's largest rank, but for what every process needs."""
    shape, runtime, length = plan.config.shape, spec.runtime, plan.config.experiment.data.max_length
    if isinstance(spec, TrainSpec | UnlearnSpec):
        if gpus:
            return memory.held(spec, shape, gpus=False)
        needed = memory.training(workload(spec, gpus=False), runtime, shape, length)
        return needed.total + needed.host
    if gpus:
        return memory.scoring_bytes(runtime.layout, shape, runtime.precision)
    return memory.scoring(runtime.layout, shape, runtime.precision, max(length, *budgets(spec))).total


def budgets(spec: AlternativesSpec | OwnAnswersSpec | ReferenceSpec | EvaluateSpec) -> list[int]:
    """Tokens of a forward pass, of each kind of pass that a step has."""
    return [spec.token_budget, spec.answers_budget] if isinstance(spec, EvaluateSpec) else [spec.token_budget]


def _seconds(plan: Plan, spec: ModelStep, gpus: bool, state: int) -> float:
    """Seconds of a step's work, and of what it reads and writes."""
    config, layout = plan.config, spec.runtime.layout
    weights = config.shape.parameters * (2 if spec.runtime.precision == "bf16" else 4)
    speed = GPU_SPEED[spec.runtime.precision] if gpus else CPU_SPEED * spec.runtime.threads
    seconds = operations(plan, spec) / (layout.ranks * speed) + weights / DISK
    if isinstance(spec, TrainSpec | UnlearnSpec):
        steps = spec.steps if isinstance(spec, TrainSpec) else unlearning_steps(plan.config, spec)
        seconds += weights / DISK
        seconds += states_written(spec, steps, seconds) * state / DISK
    if isinstance(spec, UnlearnSpec) and spec.validation and spec.validation.select != "last":
        # The best weights may be written at every measurement, and are read once.
        seconds += (_measurements(plan, spec) + 1) * weights / DISK
    if isinstance(spec, UnlearnSpec):
        seconds += len(spec.saved_epochs) * weights / DISK
    return seconds + generation_seconds(plan, spec, gpus)


def states_written(spec: TrainSpec | UnlearnSpec, steps: int, seconds: float) -> int:
    """How many resume states a run of that many steps and seconds writes at most, without that of a stop."""
    by_step = steps // spec.checkpoint_every if spec.checkpoint_every else 0
    by_time = seconds / (60 * spec.checkpoint_minutes) if spec.checkpoint_minutes else 0
    return int(min(steps, by_step + by_time))


def generation_seconds(plan: Plan, spec: ModelStep, gpus: bool) -> float:
    """Seconds that a step's generated tokens take beside their operations: to start kernels and to read weights."""
    config, layout = plan.config, spec.runtime.layout
    weights, answers = config.shape.parameters * (2 if spec.runtime.precision == "bf16" else 4), 0
    new_tokens, budget = 0, 0
    if isinstance(spec, EvaluateSpec):
        cost = family(spec.options.family).cost(spec.options, config.forget_rows)
        answers, new_tokens, budget = cost.answers, cost.new_tokens, spec.answers_budget
    elif isinstance(spec, AlternativesSpec | OwnAnswersSpec):
        answers, new_tokens, budget = _sampled(spec, config.forget_rows), spec.max_new_tokens, spec.token_budget
    longest = config.experiment.data.max_length + new_tokens
    batches = math.ceil(math.ceil(answers / max(1, budget // longest)) / layout.data)
    return batches * new_tokens * (config.shape.layers * DECODE[gpus] + weights / layout.tensor / WEIGHTS[gpus])


def operations(plan: Plan, spec: ModelStep) -> float:
    """Floating-point operations of a step at most, over all ranks; idle pipeline stages count as if they worked."""
    config, parameters = plan.config, plan.config.shape.parameters
    length, rows = config.experiment.data.max_length, config.forget_rows
    whole = config.data.all_rows(config.source, config.experiment.split, rows)
    if isinstance(spec, ReferenceSpec):
        return 2.0 * parameters * length * max(whole, 5 * rows)
    if isinstance(spec, AlternativesSpec | OwnAnswersSpec):
        return 2.0 * parameters * _sampled(spec, rows) * (length + spec.max_new_tokens)
    if isinstance(spec, EvaluateSpec):
        cost = family(spec.options.family).cost(spec.options, rows)
        return 2.0 * parameters * (cost.sequences * length + cost.answers * (length + cost.new_tokens))
    trained = 8 if spec.runtime.recompute_activations else 6
    layout, batching = spec.runtime.layout, spec.batching
    micro = math.ceil(batching.global_batch / (layout.data * batching.sequences_of(length)))
    idle = (micro + layout.pipeline - 1) / micro
    if isinstance(spec, TrainSpec):
        tokens = spec.steps * batching.global_batch * length
        return idle * trained * parameters * tokens
    if spec.trainable_layers is not None:
        parameters, _ = memory.trainable_parameters(Layout(), config.shape, spec.trainable_layers)
    batches = 1 + spec.forget_loss.needs_preferred_answers + (spec.retain_loss is not None)
    each = (trained - 2 * (spec.lora is not None)) * spec.rule.gradients + 2 * keeps_reference_model(spec)
    tokens = unlearning_steps(plan.config, spec) * batching.global_batch * length * batches
    passes = math.ceil(spec.epochs) * spec.rule.retain_passes * whole * length
    if spec.validation is not None:
        sample = len(spec.topics) * spec.validation.rows  # of each set, which has no more rows than there are
        passes += _measurements(plan, spec) * (min(sample, rows) + min(sample, max(whole, rows))) * length
    return parameters * (idle * each * tokens + 2.0 * passes)


def _sampled(spec: AlternativesSpec | OwnAnswersSpec, forget_rows: int) -> int:
    """Answers that a step samples."""
    return spec.per_row * (len(general_prompts.read(spec)) if isinstance(spec, OwnAnswersSpec) else forget_rows)


def _measurements(plan: Plan, spec: UnlearnSpec) -> int:
    """How often a run with ``validation`` scores its sample."""
    assert spec.validation is not None
    steps, per_epoch = unlearning_steps(plan.config, spec), steps_per_epoch(plan.config, spec)
    return len(spec.validation.points(steps, per_epoch))
