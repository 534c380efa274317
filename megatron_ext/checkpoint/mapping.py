"""Which Hugging Face tensors each Megatron parameter is made of, and how: one table, used for reading and for writing.

A parameter has up to two names: that of the local layer spec, and that of the Transformer Engine spec where a norm is
fused into the linear layer that follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megatron_ext.checkpoint.splits import (
    Kind,
    Part,
    Shapes,
    column,
    grouped,
    joined,
    of_experts,
    of_stack,
    replicated,
    row,
    vocabulary,
)
from megatron_ext.config import Layout, TrainableLayers
from megatron_ext.model.build import pipeline_split
from megatron_ext.model.families import Experts, Family, family_of

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


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
        number = sum(split[:stage]) + index
        places = f"decoder.layers.{index}.", f"model.layers.{number}."
        found += _layer(hf, family, layout.expert, *places, number)
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


Named = tuple[str, Kind, Shapes]  # Megatron's names in a layer, and Hugging Face tensors by theirs


def _layer(
    hf: Mapping[str, Any], family: type[Family], ways: int, megatron: str, prefix: str, number: int
) -> list[Entry]:
    h = hf["hidden_size"]
    before, beside, behind = "post_attention_layernorm.weight", list[Named](), list[Named]()
    if family.post_norms:
        beside = [("self_attn_bda.norm.weight", replicated, {before: (h,)})]
        before = "pre_feedforward_layernorm.weight"
        behind = [("mlp_bda.norm.weight", replicated, {"post_feedforward_layernorm.weight": (h,)})]
    experts = family.experts(hf)
    dense = experts is None or number < experts.first
    first = "input_layernorm.weight or self_attention.linear_qkv.layer_norm_weight"
    parts = [
        (first, replicated, {"input_layernorm.weight": (h,)}),
        *(_attention(hf, family) if family.latent(hf) is None else _latent_attention(hf, family)),
        *beside,
        ("pre_mlp_layernorm.weight or mlp.linear_fc1.layer_norm_weight", replicated, {before: (h,)}),
        *(_mlp(hf, family) if experts is None or dense else _experts(experts, h, ways)),
        *behind,
    ]
    return [
        Entry(
            tuple(megatron + name for name in names.split(" or ")),
            kind,
            {prefix + name: shape for name, shape in shapes.items()},
        )
        for names, kind, shapes in parts
    ]


def _attention(hf: Mapping[str, Any], family: type[Family]) -> list[Named]:
    heads = hf["num_attention_heads"]
    groups = hf.get("num_key_value_heads") or heads
    size = hf.get("head_dim") or hf["hidden_size"] // heads
    h, q, kv = hf["hidden_size"], heads * size, groups * size
    kind: Kind = grouped(groups)
    shapes: Shapes = {"self_attn.q_proj.weight": (q, h)} | {f"self_attn.{x}_proj.weight": (kv, h) for x in "kv"}
    if family.fused:
        kind, shapes = joined(kind, (q, kv, kv)), {"self_attn.qkv_proj.weight": (q + 2 * kv, h)}
    found: list[Named] = [("self_attention.linear_qkv.weight", kind, shapes)]
    if family.has_qkv_bias(hf):
        biases = {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
        found.append(("self_attention.linear_qkv.bias", grouped(groups), biases))
    if family.qk_norm:
        for which in "qk":
            norm = {f"self_attn.{which}_norm.weight": (size,)}
            found.append((f"self_attention.{which}_layernorm.weight", replicated, norm))
    if family.sinks:
        found.append(("self_attention.core_attention.softmax_offset", column, {"self_attn.sinks": (heads,)}))
    found.append(("self_attention.linear_proj.weight", row, {"self_attn.o_proj.weight": (h, q)}))
    if family.output_bias:
        found.append(("self_attention.linear_proj.bias", replicated, {"self_attn.o_proj.bias": (h,)}))
    return found


def _latent_attention(hf: Mapping[str, Any], family: type[Family]) -> list[Named]:
    sizes, h, heads = family.latent(hf), hf["hidden_size"], hf["num_attention_heads"]
    assert sizes is not None
    down = (sizes.rank + sizes.rotary, h)
    up = (heads * (sizes.plain + sizes.value), sizes.rank)
    queries = (heads * (sizes.plain + sizes.rotary), h)
    return [
        ("self_attention.linear_q_proj.weight", column, {"self_attn.q_proj.weight": queries}),
        ("self_attention.linear_kv_down_proj.weight", replicated, {"self_attn.kv_a_proj_with_mqa.weight": down}),
        ("self_attention.kv_layernorm.weight", replicated, {"self_attn.kv_a_layernorm.weight": (sizes.rank,)}),
        ("self_attention.linear_kv_up_proj.weight", column, {"self_attn.kv_b_proj.weight": up}),
        ("self_attention.linear_proj.weight", row, {"self_attn.o_proj.weight": (h, heads * sizes.value)}),
    ]


def _mlp(hf: Mapping[str, Any], family: type[Family]) -> list[Named]:
    h, f = hf["hidden_size"], hf["intermediate_size"]
    kind: Kind = column
    shapes: Shapes = {f"mlp.{x}_proj.weight": (f, h) for x in ("gate", "up")}
    if family.fused:
        kind, shapes = joined(kind, (f, f)), {"mlp.gate_up_proj.weight": (2 * f, h)}
    return [("mlp.linear_fc1.weight", kind, shapes), ("mlp.linear_fc2.weight", row, {"mlp.down_proj.weight": (h, f)})]


def _experts(kind: Experts, hidden: int, ways: int) -> list[Named]:
    """A layer's router and experts. The tensors are in the same order for every number of ``ways``."""
    found: list[Named] = [("mlp.router.weight", replicated, {kind.router: (kind.count, hidden)})]
    if kind.stacked:
        found.append(("mlp.router.bias", replicated, {kind.router.replace("weight", "bias"): (kind.count,)}))
        for linear, name, shape, dimension in (
            ("linear_fc1", kind.gate, (kind.count, hidden, 2 * kind.width), 2),
            ("linear_fc2", kind.down, (kind.count, kind.width, hidden), 1),
        ):
            found.append((f"mlp.experts.{linear}.weight", of_stack(ways, dimension), {name: shape}))
            found.append((f"mlp.experts.{linear}.bias", of_stack(ways, 1), {f"{name}_bias": (shape[0], shape[2])}))
        return found
    wide, high = (kind.width, hidden), (hidden, kind.width)
    local = [range(first, first + ways) for first in range(0, kind.count, ways)]
    for i, numbers in enumerate(local):
        pairs = {name.format(n): wide for n in numbers for name in (kind.gate, kind.up)}
        found.append((f"mlp.experts.{i}.linear_fc1.weight", of_experts(column, ways), pairs))
    for i, numbers in enumerate(local):
        downs = {kind.down.format(n): high for n in numbers}
        found.append((f"mlp.experts.{i}.linear_fc2.weight", of_experts(row, ways), downs))
    if kind.shared:
        shared = {f"mlp.shared_experts.{x}_proj.weight": (kind.shared, hidden) for x in ("gate", "up")}
        down = {"mlp.shared_experts.down_proj.weight": (hidden, kind.shared)}
        found.append(("mlp.shared_experts.linear_fc1.weight", column, shared))
        found.append(("mlp.shared_experts.linear_fc2.weight", row, down))
    return found
