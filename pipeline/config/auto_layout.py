"""Which layouts there are of so many GPUs, and the first at which an experiment's steps fit: ``layout: {auto: N}``.

The choice follows from the experiment's files alone, so it is the same on every machine, and it is written into every
step's specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_ext.config import Layout
from megatron_ext.specs import ModelSource, Topic, TrainSpec, UnlearnSpec
from pipeline.config import memory, methods, sizing
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


def fits(needed: int, gpu_memory: float) -> bool:
    """Whether a rank's bytes go into a GPU with ``gpu_memory`` bytes, beside what is kept free."""
    return needed + RESERVE <= gpu_memory


def chosen(wanted: AutoLayout, experiment: Experiment, runs: Sequence[Method], shape: Shape) -> Layout | None:
    """The layout that an experiment which says ``layout: {auto: N}`` has; ``None`` where nothing fits.

    Args:
        wanted: How many GPUs, and of what size.
        experiment: The experiment.
        runs: Its methods with all their settings.
        shape: The model's sizes.
    """
    found = recommended(experiment, runs, shape, wanted.auto, wanted.memory_gib * 2**30, wanted.node)
    return None if found is None else found[0]


def recommended(
    experiment: Experiment, runs: Sequence[Method], shape: Shape, ranks: int, gpu_memory: float, node: int = NODE
) -> tuple[Layout, int] | None:
    """The first layout of so many GPUs at which every step of an experiment fits.

    Args:
        experiment: The experiment.
        runs: Its methods with all their settings.
        shape: The model's sizes.
        ranks: How many GPUs there are.
        gpu_memory: Bytes of each.
        node: GPUs of a node.

    Returns:
        The layout, with the bytes of its largest rank; ``None`` where nothing fits.
    """
    for layout in possible(experiment, runs, shape, ranks, node):
        needed = peak(experiment, runs, shape, layout)
        if fits(needed, gpu_memory):
            return layout, needed
    return None


def possible(
    experiment: Experiment, runs: Sequence[Method], shape: Shape, ranks: int, node: int = NODE
) -> Iterator[Layout]:
    """Those of ``layouts`` that go with every batch and optimizer of an experiment, its attacks' too, and with the
    layers that its methods build."""
    parts: list[Batches] = [*experiment.training.sections.values(), *(method.training for method in runs)]
    parts += experiment.robustness.relearned
    built = [method.trainable_layers.up_to + 1 for method in runs if method.trainable_layers is not None]
    distributed = experiment.runtime.memory.optimizer != "resident"
    for layout in layouts(shape, ranks, node, distributed):
        if layout.pipeline <= min(built, default=shape.layers) and all(_goes(part, layout) for part in parts):
            yield layout


def _goes(part: Batches, layout: Layout) -> bool:
    divides = part.global_batch % (layout.data * (part.micro_batch or 1)) == 0
    return divides and not (part.optimizer.name == "sgd" and layout.distributed_optimizer)


def peak(experiment: Experiment, runs: Sequence[Method], shape: Shape, layout: Layout) -> int:
    """Bytes of the largest rank of any step of an experiment at one of its ``possible`` layouts."""
    length, given = experiment.data.max_length, experiment.evaluation
    tokens = max(length, given.token_budget, given.generation_token_budget or 0)
    found = [memory.scoring(layout, shape, experiment.runtime.precision, tokens)]
    found += [
        memory.training(workload(spec, gpus=True), spec.runtime, shape, length)
        for spec in _training_steps(experiment, runs, layout)
    ]
    return max(each.total for each in found)


def _training_steps(
    experiment: Experiment, runs: Sequence[Method], layout: Layout
) -> Iterator[TrainSpec | UnlearnSpec]:
    """What of each kind of step that trains decides its memory."""
    runtime, training = methods.runtime(layout, experiment.runtime), experiment.training
    for part in (*(training.sections[which] for which in training.used), *experiment.robustness.relearned):
        yield TrainSpec.model_construct(
            model=ModelSource.model_construct(),
            data={},
            steps=1,
            output=Path(),
            optimizer=part.optimizer,
            batching=part.batching(layout),
            runtime=runtime,
        )
    topics = [Topic.model_construct(forget_data=Path(), retain_data=Path())]
    for method in runs:
        yield UnlearnSpec.model_construct(topics=topics, **methods.settings(method, runtime))
