"""Bytes on a rank, exact where they can be counted: weights, gradients, vectors, optimizer state; and activations.

Counted from sizes alone, without torch. A test counts the storages of real ranks beside it.

- Matrices are split over tensor-parallel ranks, the vocabulary padded to a multiple of them; norms are on every rank.
- Of an adapter, which is all that is trained where there are some, one matrix is split over tensor-parallel ranks.
- Gradients, moments, vectors of a rule and, under bf16, a master copy of the weights are fp32, where `runtime.memory`
  (`megatron_ext.training.optimizer` has a table of it) says nothing else. The distributed optimizer spreads all of
  these but the gradients over data-parallel ranks, and aligns parameters for that.
- A block keeps for the backward pass, of each token: its two inputs and their norms; queries, keys, values and the
  attention's output; four vectors of the feed-forward width. With recomputation only its input, and the rest of one
  block at a time, when the logits are gone. A norm is taken to be a GPU's one kernel, which keeps its input.
  A stage that has `s` stages behind it holds `s + 1` micro-batches.
  Beside them is the gradient of a matrix, before it is added to the buffer.
- Logits of a micro-batch's positions live in the activations' type once and in fp32 `FP32_LOGITS` times, of at most
  `LOGITS` at a time where a loss works position by position, which is what is taken for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from megatron_ext.config import Layout, Runtime, TrainableLayers, even_split
from megatron_ext.config.lora import Lora
from megatron_ext.specs import TrainSpec, UnlearnSpec
from pipeline.config.sizing import Shape
from pipeline.config.workload import Workload, workload

LOGITS = 1 << 28  # as `megatron_ext.model.loss_inputs` has it
FP32_LOGITS = 2
ALIGNED, BUCKET = 64, 128  # elements to which the distributed optimizer aligns a parameter, and a bucket


@dataclass(frozen=True)
class Parameters:
    """Parameters of one rank: of all that it builds, and the sizes of those that it trains, in a bucket each."""

    built: int
    buckets: tuple[tuple[int, ...], ...]

    @property
    def trained(self) -> int:
        """How many are trained."""
        return sum(map(sum, self.buckets))

    def aligned(self, layout: Layout) -> int:
        """Elements of the gradient buffer."""
        if not layout.distributed_optimizer:
            return self.trained
        whole = math.lcm(layout.data, BUCKET)
        return sum(_up(sum(_up(size, ALIGNED) for size in bucket), whole) for bucket in self.buckets)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by what they are for.

    Attributes:
        weights: Of the model as it computes.
        gradients: The buffer that they are reduced in.
        vectors: Further gradients that a rule keeps apart, at most.
        between: Those of ``vectors`` that are made when no backward pass is under way.
        optimizer: Moments, and the master copy of the weights.
        reference: Copies of the weights before unlearning.
        activations: What a backward pass needs, or, in scoring, one block's and the cache of keys and values.
        block: Of a block that the backward pass computes again, when there are no logits any more.
        logits: Of one micro-batch.
        step: What the optimizer makes for its step, when there are neither activations nor logits.
        host: In host memory, where the model is on a GPU: an offloaded optimizer's. No part of the sums below.
    """

    weights: int = 0
    gradients: int = 0
    vectors: int = 0
    optimizer: int = 0
    reference: int = 0
    activations: int = 0
    block: int = 0
    logits: int = 0
    step: int = 0
    host: int = 0
    between: int = 0

    @property
    def lasting(self) -> int:
        """Without what comes and goes with a micro-batch."""
        return self.weights + self.gradients + self.vectors + self.optimizer + self.reference

    @property
    def total(self) -> int:
        """The peak, if everything of a micro-batch is there at once."""
        passing = self.activations + max(self.logits, self.block)
        return self.lasting - self.between + max(passing, self.between, self.step)


def stages(
    layout: Layout, shape: Shape, trainable_layers: TrainableLayers | None = None, lora: Lora | None = None
) -> list[Parameters]:
    """Parameters of a rank of each pipeline stage, the first stage first."""
    split = _layers(layout, shape, trainable_layers)
    found = [_stage(layout, shape, split, number, trainable_layers) for number in range(layout.pipeline)]
    if lora is None:
        return found
    blocks = [range(sum(split[:number]), sum(split[: number + 1])) for number in range(layout.pipeline)]
    trained = None if trainable_layers is None else set(trainable_layers.trained_layers)
    each = _adapters(lora, shape, layout.tensor, trainable_layers)
    numbers = [len(here) if trained is None else len(trained.intersection(here)) for here in blocks]
    sizes = [tuple(each * number) for number in numbers]
    return [Parameters(stage.built + sum(own), (own,) if own else ()) for stage, own in zip(found, sizes, strict=True)]


def _adapters(lora: Lora, shape: Shape, tensor: int, trainable_layers: TrainableLayers | None) -> list[int]:
    """Sizes of the parameters of a block's adapters: of each of Megatron's linear layers the two matrices."""
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "qkv_proj": queries + 2 * keys}
    rows |= {"gate_proj": shape.ffn, "up_proj": shape.ffn, "gate_up_proj": 2 * shape.ffn}
    inputs = {"linear_proj": shape.attended, "linear_fc2": shape.ffn}
    found = []
    for linear, names in lora.matrices(shape.fused, trainable_layers).items():
        if linear in inputs:
            found += [inputs[linear] // tensor, shape.hidden]
        else:
            found += [len(names) * shape.hidden, sum(rows[name] for name in names) // tensor]
    return [lora.rank * size for size in found]


def _stage(
    layout: Layout, shape: Shape, split: list[int], number: int, trainable_layers: TrainableLayers | None
) -> Parameters:
    tensor, whole = layout.tensor, trainable_layers is None
    here = range(sum(split[:number]), sum(split[: number + 1]))
    matrices = {layer: shape.matrices(layer, tensor) for layer in here}
    blocks = [size for layer in here for size in (*matrices[layer].values(), *shape.others(layer, tensor)) if size]
    embedding = shape.hidden * -(-shape.vocabulary // tensor)
    first, last = number == 0, number == len(split) - 1
    head = last and whole and (not shape.tied or len(split) > 1)
    ends = [embedding] * first + [shape.hidden] * (last and whole) + [embedding] * head
    built = sum(blocks) + sum(ends)
    if trainable_layers is not None:
        layers = sorted(set(trainable_layers.trained_layers) & set(here))
        trained = [matrices[layer][name] for layer in layers for name in trainable_layers.target_modules]
        return Parameters(built, (tuple(trained),) if trained else ())
    # An embedding that both ends of a pipeline have is a bucket of its own.
    apart = shape.tied and len(split) > 1 and (first or last)
    rest = blocks + ([shape.hidden] * last if apart else ends)
    return Parameters(built, (tuple(rest), (embedding,)) if apart else (tuple(rest),))


def stage_parameters(layout: Layout, shape: Shape) -> int:
    """Parameters of the largest rank."""
    return max(stage.built for stage in stages(layout, shape))


def trainable_parameters(layout: Layout, shape: Shape, trainable_layers: TrainableLayers) -> tuple[int, int]:
    """The most parameters that a rank builds, and that a rank trains, where only ``trainable_layers`` are built."""
    found = stages(layout, shape, trainable_layers)
    return max(stage.built for stage in found), max(stage.trained for stage in found)


def lasting(work: Workload, runtime: Runtime, shape: Shape) -> list[Memory]:
    """What stays on a rank of each pipeline stage through a training step, without activations and logits."""
    layout, lean, width = runtime.layout, runtime.memory, _width(runtime.precision)
    gradient, found = 2 if lean.gradients == "bf16" else 4, []
    for stage in stages(layout, shape, work.trainable_layers, work.lora):
        aligned = stage.aligned(layout)
        shard = aligned // layout.data if layout.distributed_optimizer else aligned
        buffer = aligned if layout.distributed_optimizer else stage.trained
        if work.lora is None and work.reference and work.trainable_layers is not None:
            copied = stage.trained
        else:
            copied = work.copies * (stage.built if work.lora is None else stage.trained)
        optimizer, step, host = _optimizer(work, runtime, stage, shard)
        found.append(
            Memory(
                weights=width * (stage.built - stage.trained + buffer),
                gradients=gradient * aligned,
                vectors=gradient * work.vectors * shard,
                between=gradient * work.between * shard,
                optimizer=optimizer,
                reference=width * copied,
                step=step,
                host=host,
            )
        )
    return found


def _optimizer(work: Workload, runtime: Runtime, stage: Parameters, shard: int) -> tuple[int, int, int]:
    """Bytes of the optimizer that last, that its step makes, and in host memory; ``shard``: elements that it moves."""
    lean = runtime.memory
    if lean.optimizer == "offload":
        # A parameter at a time is converted on its way to the host and back.
        largest = max((max(bucket) for bucket in stage.buckets), default=0)
        return 0, 4 * min(largest, shard), 16 * shard
    if lean.optimizer == "precision-aware" or not lean.main_weights:
        return shard * (6 if lean.main_weights else 4 * work.adam), 0, 0
    return shard * (8 * work.adam + 4 * (runtime.precision == "bf16")), 4 * shard * (lean.gradients == "bf16"), 0


def training(work: Workload, runtime: Runtime, shape: Shape, length: int) -> Memory:
    """Bytes of a training step on the rank that has most, with rows of ``length`` tokens."""
    layout, width, made = runtime.layout, _width(runtime.precision), []
    rows = work.batching.sequences_of(work.answers * length)
    tokens = work.answers * rows * length
    last = layout.pipeline - 1 if work.trainable_layers is None else None  # a part of a model has no logits
    found = stages(layout, shape, work.trainable_layers, work.lora)
    for number, (stage, held) in enumerate(zip(found, lasting(work, runtime, shape), strict=True)):
        waiting = min(layout.pipeline - number, work.losses * -(-work.batching.global_batch // (layout.data * rows)))
        layers = _layers(layout, shape, work.trainable_layers)[number]
        kept, block = (int(width * tokens * each) for each in _kept(runtime, shape, layers, waiting))
        largest = width * max((max(bucket) for bucket in stage.buckets), default=0)
        positions = min(tokens, max(1, LOGITS * layout.tensor // shape.vocabulary))
        logits = positions * -(-shape.vocabulary // layout.tensor) * (width + 4 * FP32_LOGITS) * (1 + work.reference)
        logits = logits if number == last else 0
        made.append(replace(held, activations=kept + largest, block=block, logits=logits))
    return max(made, key=lambda memory: memory.total)


def scoring(layout: Layout, shape: Shape, precision: str, tokens: int) -> Memory:
    """Bytes of scoring or generating on the largest rank, with ``tokens`` in a forward pass."""
    width, layers = _width(precision), max(_layers(layout, shape, None))
    cache = layers * 2 * shape.key_value_heads * shape.head_dim
    block = 8 * shape.hidden + 3 * shape.ffn
    logits = min(1 << 26, tokens * -(-shape.vocabulary // layout.tensor)) * (width + 4 * FP32_LOGITS)
    activations = width * tokens * (block + cache) // layout.tensor
    return Memory(weights=scoring_bytes(layout, shape, precision), activations=activations, logits=logits)


def held(spec: TrainSpec | UnlearnSpec, shape: Shape, gpus: bool) -> int:
    """Bytes that stay on the largest rank through a training step, with those in host memory."""
    return max(memory.lasting + memory.host for memory in lasting(workload(spec, gpus), spec.runtime, shape))


def scoring_bytes(layout: Layout, shape: Shape, precision: str) -> int:
    """Bytes of weights on the largest rank."""
    return _width(precision) * stage_parameters(layout, shape)


def _kept(runtime: Runtime, shape: Shape, layers: int, waiting: int) -> tuple[float, float]:
    """Elements that a stage keeps of each token, for the micro-batches that wait for their backward pass; and of the
    block that it computes again in one."""
    layout = runtime.layout
    spread = layout.tensor if layout.sequence_parallel else 1
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    inside = shape.ffn * (shape.experts.chosen if shape.experts else 1)
    block = 4 * shape.hidden / spread + (2 * queries + 2 * keys + 4 * inside) / layout.tensor
    if runtime.recompute_activations:
        return waiting * layers * shape.hidden / spread, block
    return waiting * layers * block, 0


def _layers(layout: Layout, shape: Shape, trainable_layers: TrainableLayers | None) -> list[int]:
    if trainable_layers is not None:
        return even_split(trainable_layers.up_to + 1, layout.pipeline)
    return layout.pipeline_split or even_split(shape.layers, layout.pipeline)


def _width(precision: str) -> int:
    return 2 if precision == "bf16" else 4


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
