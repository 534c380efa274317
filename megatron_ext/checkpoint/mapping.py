"""Which Hugging Face tensors each Megatron parameter is made of, and how: one table, used for reading and for writing.

A parameter has up to two names: that of the local layer spec, and that of the Transformer Engine spec where a norm is
fused into the linear layer that follows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from megatron_ext.config import Layout, TrainableLayers
from megatron_ext.model.build import pipeline_split
from megatron_ext.model.families import Experts, Family, family_of

Shapes = Mapping[str, tuple[int, ...]]
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


@dataclass(frozen=True)
class Part:
    """One tensor-parallel rank's share of a Hugging Face tensor.

    Attributes:
        name: The tensor's name.
        index: ``tensor[index]`` is the share.
        place: From the rank's Megatron parameter to the view of it that has the same values in the same order.
    """

    name: str
    index: tuple[slice, ...]
    place: Callable[[Tensor], Tensor]


Kind = Callable[[Shapes, int, int], list[Part]]


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter of a pipeline stage.

    Attributes:
        names: Its possible names.
        kind: How it is split over tensor-parallel ranks.
        shapes: Name and shape of the Hugging Face tensors in it, in order.
        stored: Whether it is written to checkpoints.
    """

    names: tuple[str, ...]
    kind: Kind
    shapes: Shapes
    stored: bool = True

    def parts(self, rank: int, size: int) -> list[Part]:
        """The shares of tensor-parallel rank ``rank`` of ``size``."""
        return self.kind(self.shapes, rank, size)

    def find(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """This entry's parameter among those of a stage, by name; raises ``KeyError`` with the names looked for."""
        for name in self.names:
            if name in parameters:
                return parameters[name]
        raise KeyError(f"the model has no parameter {' or '.join(self.names)}")


def replicated(shapes: Shapes, rank: int, size: int) -> list[Part]:
    """Every rank has the whole tensor."""
    return [Part(name, (), lambda local: local) for name in shapes]


def vocabulary(shapes: Shapes, rank: int, size: int) -> list[Part]:
    """Rows split evenly after padding their number; the padding belongs to no tensor."""
    found = []
    for name, (rows, _) in shapes.items():
        shard = math.ceil(rows / size)
        start, stop = min(rank * shard, rows), min((rank + 1) * shard, rows)
        if start < stop:
            found.append(Part(name, (slice(start, stop),), partial(_first_rows, stop - start)))
    return found


def row(shapes: Shapes, rank: int, size: int) -> list[Part]:
    """Split along dimension 1, the input of a row-parallel layer."""
    found = []
    for name, (_, columns) in shapes.items():
        shard = columns // size
        found.append(Part(name, (slice(None), slice(rank * shard, (rank + 1) * shard)), lambda local: local))
    return found


def column(shapes: Shapes, rank: int, size: int) -> list[Part]:
    """Split along dimension 0, the output; several tensors lie one after the other on each rank (gate, up)."""
    return interleaved(shapes, rank, size, groups=size)


def grouped(groups: int) -> Kind:
    """Split along dimension 0 by query group; each group is its query heads, its key head, its value head."""
    return partial(interleaved, groups=groups)


def of_experts(kind: Kind, ways: int) -> Kind:
    """As ``kind`` of a local expert's tensors, of which each of ``ways`` groups of ranks has another expert's."""
    return partial(_of_experts, kind=kind, ways=ways)


def joined(kind: Kind, rows: tuple[int, ...]) -> Kind:
    """As ``kind`` of tensors with so many rows each, which lie one below the other in a single Hugging Face tensor."""
    return partial(_joined, kind=kind, rows=rows)


def entries(
    hf: Mapping[str, Any], layout: Layout, stage: int, trainable_layers: TrainableLayers | None = None
) -> list[Entry]:
    """The parameters of one pipeline stage of a Hugging Face config.

    ``stored`` is false for the last stage's own copy of a tied embedding, which is read but not written.

    Args:
        hf: The config.
        layout: How the model is spread over ranks.
        stage: The pipeline stage, from 0.
        trainable_layers: With them, only the part of the model that they build.

    Returns:
        The parameters in the order of the layers.
    """
    family = family_of(hf)
    split = pipeline_split(hf["num_hidden_layers"], layout, trainable_layers)
    hidden, rows = hf["hidden_size"], (hf["vocab_size"], hf["hidden_size"])
    tied = family.is_tied(hf)
    found = []
    if stage == 0:
        found.append(Entry(("embedding.word_embeddings.weight",), vocabulary, {EMBEDDING: rows}))
    for index in range(split[stage]):
        found += _layer(
            hf, family, layout.expert, f"decoder.layers.{index}.", f"model.layers.{sum(split[:stage]) + index}."
        )
    if stage == layout.pipeline - 1 and trainable_layers is None:
        found.append(Entry(("decoder.final_layernorm.weight",), replicated, {"model.norm.weight": (hidden,)}))
        if not tied:
            found.append(Entry(("output_layer.weight",), vocabulary, {OUTPUT: rows}))
        elif layout.pipeline > 1:
            found.append(Entry(("output_layer.weight",), vocabulary, {EMBEDDING: rows}, stored=False))
    return found


def tensor_shapes(hf: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Hugging Face config's checkpoint, in the order they are written."""
    return {name: shape for entry in entries(hf, Layout(), 0) for name, shape in entry.shapes.items()}


def _layer(hf: Mapping[str, Any], family: type[Family], ways: int, megatron: str, prefix: str) -> list[Entry]:
    heads = hf["num_attention_heads"]
    groups = hf.get("num_key_value_heads") or heads
    size = hf.get("head_dim") or hf["hidden_size"] // heads
    h, f, q, kv = hf["hidden_size"], hf["intermediate_size"], heads * size, groups * size

    def entry(names: str, kind: Kind, shapes: Shapes) -> Entry:
        return Entry(
            tuple(megatron + name for name in names.split(" or ")),
            kind,
            {prefix + name: shape for name, shape in shapes.items()},
        )

    qkv, qkv_shapes = grouped(groups), {f"self_attn.{x}_proj.weight": (kv, h) for x in "qkv"}
    qkv_shapes["self_attn.q_proj.weight"] = (q, h)
    gate: Kind = column
    gate_shapes: Shapes = {f"mlp.{x}_proj.weight": (f, h) for x in ("gate", "up")}
    if family.fused:
        qkv, qkv_shapes = joined(qkv, (q, kv, kv)), {"self_attn.qkv_proj.weight": (q + 2 * kv, h)}
        gate, gate_shapes = joined(gate, (f, f)), {"mlp.gate_up_proj.weight": (2 * f, h)}
    attention = [
        entry(
            "input_layernorm.weight or self_attention.linear_qkv.layer_norm_weight",
            replicated,
            {"input_layernorm.weight": (h,)},
        ),
        entry("self_attention.linear_qkv.weight", qkv, qkv_shapes),
    ]
    if family.has_qkv_bias(hf):
        biases = {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
        attention.append(entry("self_attention.linear_qkv.bias", grouped(groups), biases))
    if family.qk_norm:
        for which in "qk":
            norm = {f"self_attn.{which}_norm.weight": (size,)}
            attention.append(entry(f"self_attention.{which}_layernorm.weight", replicated, norm))
    attention.append(entry("self_attention.linear_proj.weight", row, {"self_attn.o_proj.weight": (h, q)}))
    before, behind = "post_attention_layernorm.weight", []
    if family.post_norms:
        attention.append(entry("self_attn_bda.norm.weight", replicated, {before: (h,)}))
        before = "pre_feedforward_layernorm.weight"
        behind = [entry("mlp_bda.norm.weight", replicated, {"post_feedforward_layernorm.weight": (h,)})]
    experts = family.experts(hf)
    mlp = [
        ("mlp.linear_fc1.weight", gate, gate_shapes),
        ("mlp.linear_fc2.weight", row, {"mlp.down_proj.weight": (h, f)}),
    ]
    return [
        *attention,
        entry("pre_mlp_layernorm.weight or mlp.linear_fc1.layer_norm_weight", replicated, {before: (h,)}),
        *([entry(*each) for each in (mlp if experts is None else _experts(experts, h, ways))]),
        *behind,
    ]


def _experts(kind: Experts, hidden: int, ways: int) -> list[tuple[str, Kind, Shapes]]:
    """A layer's router and experts: Megatron's names, how they are split, and the tensors in them.

    The tensors are in the same order for every number of ``ways``.
    """
    wide, high = (kind.width, hidden), (hidden, kind.width)
    found: list[tuple[str, Kind, Shapes]] = [("mlp.router.weight", replicated, {kind.router: (kind.count, hidden)})]
    local = [range(first, first + ways) for first in range(0, kind.count, ways)]
    for i, numbers in enumerate(local):
        pairs = {name.format(n): wide for n in numbers for name in (kind.gate, kind.up)}
        found.append((f"mlp.experts.{i}.linear_fc1.weight", of_experts(column, ways), pairs))
    for i, numbers in enumerate(local):
        downs = {kind.down.format(n): high for n in numbers}
        found.append((f"mlp.experts.{i}.linear_fc2.weight", of_experts(row, ways), downs))
    return found


def _of_experts(shapes: Shapes, rank: int, size: int, kind: Kind, ways: int) -> list[Part]:
    group, place = divmod(rank, size // ways)
    each = len(shapes) // ways
    own = list(shapes)[group * each : (group + 1) * each]
    return kind({name: shapes[name] for name in own}, place, size // ways)


def interleaved(shapes: Shapes, rank: int, size: int, groups: int) -> list[Part]:
    """Split along dimension 0 into ``groups``, in each of which the tensors' rows lie one after the other."""
    own, offset, found = groups // size, 0, []
    for name, shape in shapes.items():
        rows = shape[0] // groups
        index = (slice(rank * own * rows, (rank + 1) * own * rows),)
        found.append(Part(name, index, partial(_rows_of_groups, own, offset, rows)))
        offset += rows
    return found


def _joined(shapes: Shapes, rank: int, size: int, kind: Kind, rows: tuple[int, ...]) -> list[Part]:
    ((name, (_, *rest)),) = shapes.items()
    first = {str(i): sum(rows[:i]) for i in range(len(rows))}
    found = []
    for part in kind({str(i): (count, *rest) for i, count in enumerate(rows)}, rank, size):
        (own,) = part.index
        begin = first[part.name]
        found.append(Part(name, (slice(begin + own.start, begin + own.stop),), part.place))
    return found


def _rows_of_groups(groups: int, offset: int, rows: int, local: Tensor) -> Tensor:
    return local.view(groups, -1, *local.shape[1:])[:, offset : offset + rows]


def _first_rows(count: int, local: Tensor) -> Tensor:
    return local[:count]
