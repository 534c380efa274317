"""Which layouts there are of so many GPUs, and the first at which an experiment's steps fit: ``layout: {auto: N}``.

The choice follows from the experiment's files alone, so it is the same on every machine, and it is written into every
step's specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_ext.config import Layout
from megatron_ext.specs import ModelSource, Topic, TrainSpec, UnlearnSpec
from pipeline.config import memory, methods, sizing
from pipeline.config.memory import Memory
from pipeline.config.method_schema import Batches, Method
from pipeline.config.schema import AutoLayout, Experiment
from pipeline.config.sizing import Shape
from pipeline.config.workload import workload

RESERVE = 3 * 2**30  # of a GPU: CUDA's context, NCCL's buffers, gaps between blocks; an assumption
NODE = 8  # GPUs that a node has, if nobody says otherwise


def layouts(shape: Shape, ranks: int, node: int = NODE, distributed: bool = False) -> Iterator[Layout]:
    """Layouts of that many ranks that the model's sizes allow, tensor-parallel ranks on one node.

    First those with few pipeline stages, which idle, then those with few tensor-parallel ranks, which exchange
    activations in every block. Optimizers are distributed where there are several data-parallel ranks, and with
    ``distributed`` always.
    """
    for pipeline in range(1, min(ranks, shape.layers) + 1):
        for tensor in range(1, min(ranks, node) + 1):
            if ranks % (pipeline * tensor):
                continue
            split = None if shape.layers % pipeline == 0 else sizing.even_split(shape.layers, pipeline)
            data = ranks // (pipeline * tensor)
            layout = Layout(
                tensor=tensor,
                pipeline=pipeline,
                data=data,
                pipeline_split=split,
                distributed_optimizer=distributed or data > 1,
                sequence_parallel=tensor > 1,
            )
            if not sizing.layout_problems(layout, shape):
                yield layout


def trained_at(spec: TrainSpec | UnlearnSpec, layout: Layout) -> TrainSpec | UnlearnSpec | None:
    """A step that trains at another layout; ``None`` where its batches, optimizer or layers do not go with it."""
    total = spec.batching.global_batch
    if total % layout.data or (spec.optimizer.name == "sgd" and layout.distributed_optimizer):
        return None
    trained = spec.trainable_layers if isinstance(spec, UnlearnSpec) else None
    if trained is not None and trained.up_to + 1 < layout.pipeline:
        return None
    micro = min(spec.batching.micro_batch, total // layout.data)
    batching = spec.batching.model_copy(update={"micro_batch": micro})
    return spec.model_copy(update={"runtime": spec.runtime.model_copy(update={"layout": layout}), "batching": batching})


def fits(needed: int, gpu_memory: float) -> bool:
    """Whether a rank's bytes go into a GPU with ``gpu_memory`` bytes, beside what is kept free."""
    return needed + RESERVE <= gpu_memory


def chosen(wanted: AutoLayout, experiment: Experiment, runs: Sequence[Method], shape: Shape) -> Layout | None:
    """The first layout at which every step of an experiment fits.

    Args:
        wanted: How many GPUs, and of what size.
        experiment: The experiment.
        runs: Its methods with all their settings.
        shape: The model's sizes.

    Returns:
        The layout; ``None`` where nothing fits.
    """
    distributed = experiment.runtime.memory.optimizer != "resident"
    steps = _steps(experiment, runs, shape)
    parts: list[Batches] = [*experiment.training.sections.values(), *(method.training for method in runs)]
    for layout in layouts(shape, wanted.auto, wanted.node, distributed):
        if not all(_divides(part, layout) for part in parts):
            continue
        needed = [step(layout) for step in steps]
        if all(each is not None and fits(each.total, wanted.memory_gib * 2**30) for each in needed):
            return layout
    return None


def _divides(part: Batches, layout: Layout) -> bool:
    return part.global_batch % (layout.data * (part.micro_batch or 1)) == 0


def _steps(experiment: Experiment, runs: Sequence[Method], shape: Shape) -> list[Callable[[Layout], Memory | None]]:
    """Of each kind of step, its memory at a layout; ``None`` where it does not go with it."""
    length, one = experiment.data.max_length, methods.runtime(Layout(), experiment.runtime)
    specs: list[TrainSpec | UnlearnSpec] = [
        TrainSpec.model_construct(
            model=ModelSource.model_construct(),
            data={},
            steps=1,
            output=Path(),
            optimizer=part.optimizer,
            batching=part.batching(Layout()),
            runtime=one,
        )
        for part in experiment.training.sections.values()
    ]
    topics = [Topic.model_construct(forget_data=Path(), retain_data=Path())]
    specs += [UnlearnSpec.model_construct(topics=topics, **methods.settings(method, one)) for method in runs]

    def training(spec: TrainSpec | UnlearnSpec) -> Callable[[Layout], Memory | None]:
        def at(layout: Layout) -> Memory | None:
            moved = trained_at(spec, layout)
            if moved is None:
                return None
            return memory.training(workload(moved, gpus=True), moved.runtime, shape, length)

        return at

    def scoring(layout: Layout) -> Memory:
        given = experiment.evaluation
        tokens = max(length, given.token_budget, given.generation_token_budget or 0)
        return memory.scoring(layout, shape, experiment.runtime.precision, tokens)

    return [*map(training, specs), scoring]
