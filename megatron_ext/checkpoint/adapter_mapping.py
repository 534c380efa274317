"""Which tensors each parameter of an adapter is made of: as ``mapping``, for ``megatron_ext.model.adapters``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ext.checkpoint.mapping import Entry, entries
from megatron_ext.checkpoint.splits import Part, Shapes, interleaved, replicated, row
from megatron_ext.config import Layout, TrainableLayers
from megatron_ext.config.lora import Lora
from megatron_ext.model.families import family_of


def stacked(shapes: Shapes, rank: int, size: int) -> list[Part]:
    """Every rank has the whole tensors, one below the other."""
    return interleaved(shapes, 0, 1, groups=1)


def adapter_entries(
    hf: Mapping[str, Any], layout: Layout, stage: int, lora: Lora, trainable_layers: TrainableLayers | None = None
) -> list[Entry]:
    """The parameters of a pipeline stage's adapters; ``<matrix>.lora_A.weight`` are their tensors' names, and ``B``.

    Args:
        hf: The model's config.
        layout: How the model is spread over ranks.
        stage: The pipeline stage, from 0.
        lora: Which matrices have adapters.
        trainable_layers: Which part of the model is built.

    Returns:
        The parameters in the order of the layers.
    """
    chosen = lora.matrices(family_of(hf).fused, trainable_layers)
    layers = None if trainable_layers is None else trainable_layers.trained_layers
    found = []
    for entry in entries(hf, layout, stage, trainable_layers):
        name = entry.names[0]
        targets = chosen.get(name.split(".")[-2], ()) if name.endswith(".weight") else ()
        shapes = {
            tensor.removesuffix(".weight"): shape
            for tensor, shape in entry.shapes.items()
            if tensor.split(".")[-2] in targets and (layers is None or int(tensor.split(".")[2]) in layers)
        }
        if shapes:
            place, by_row = name.removesuffix("weight") + "lora.", entry.kind is row
            first: Shapes = {f"{tensor}.lora_A.weight": (lora.rank, columns) for tensor, (_, columns) in shapes.items()}
            second: Shapes = {f"{tensor}.lora_B.weight": (rows, lora.rank) for tensor, (rows, _) in shapes.items()}
            found.append(Entry((place + "A",), row if by_row else stacked, first))
            found.append(Entry((place + "B",), replicated if by_row else entry.kind, second))
    return found


def adapter_shapes(
    hf: Mapping[str, Any], lora: Lora, trainable_layers: TrainableLayers | None = None
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model's adapters, in the order they are written."""
    found = adapter_entries(hf, Layout(), 0, lora, trainable_layers)
    return {name: shape for entry in found for name, shape in entry.shapes.items()}
