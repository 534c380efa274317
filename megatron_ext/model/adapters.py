"""Low-rank adapters beside Megatron's linear layers, at any layout; only they are trained.

Of an adapter's two matrices one is split over tensor-parallel ranks, as its layer is, and the other is whole on each:

- Beside a column-parallel layer (queries, keys and values; gate and up) ``B`` has this rank's rows. ``A`` is whole, and
  so is its gradient: backward sums that of ``A x``, ``rank`` numbers a position, over the ranks.
- Beside a row-parallel layer (attention's output, down) ``A`` has this rank's columns, and ``A x`` is summed over the
  ranks. ``B`` is whole, and so is its gradient.

Under sequence parallelism the matrix that is whole works on this rank's positions. It is marked as weights of norms
are, so that megatron-core sums its gradient over the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from megatron_ext.config.lora import ATTENTION, FUSED, MATRICES, Lora
from megatron_ext.model.build import LanguageModel
from megatron_ext.model.families import family_of

ROW_PARALLEL = ("linear_proj", "linear_fc2")


class Adapter(torch.nn.Module):
    """The adapters of all matrices of the checkpoint that one of Megatron's linear layers holds.

    Attributes:
        A: ``[matrices * rank, inputs]``, the matrices' own ``A`` one below the other.
        B: ``[outputs, rank]``, rows in the order of the layer's own, without those of matrices that have no adapter.
        enabled: Whether the layer's output is changed.
    """

    def __init__(
        self, linear: Any, lora: Lora, rows: tuple[int, ...], adapted: tuple[bool, ...], row_parallel: bool
    ) -> None:
        """Take memory; values are set when the adapters are filled.

        Args:
            linear: Megatron's layer.
            lora: The adapters' settings.
            rows: How many rows of a group of the layer's rows each matrix has; groups repeat.
            adapted: Which of the matrices have an adapter.
            row_parallel: Whether the layer is split along its input.
        """
        super().__init__()
        weight, self._rank, self._scale = linear.weight, lora.rank, lora.scale
        outputs, inputs = weight.shape
        self._rows, self._adapted, self._row_parallel = rows, adapted, row_parallel
        self._groups = outputs // sum(rows)
        self._sequence_parallel: bool = linear.config.sequence_parallel
        self._group = linear.tp_group
        kept = self._groups * sum(count for count, has in zip(rows, adapted, strict=True) if has)
        self.A = torch.nn.Parameter(weight.new_empty(sum(adapted) * lora.rank, inputs))
        self.B = torch.nn.Parameter(weight.new_empty(kept, lora.rank))
        split, whole = (self.A, self.B) if row_parallel else (self.B, self.A)
        split.tensor_model_parallel = True  # type: ignore[attr-defined] # megatron-core's marks
        split.partition_dim = 1 if row_parallel else 0  # type: ignore[attr-defined] # the same
        split.partition_stride = 1  # type: ignore[attr-defined] # the same
        whole.sequence_parallel = self._sequence_parallel  # type: ignore[attr-defined] # the same
        self.enabled = True

    def forward(self, x_SBI: Tensor) -> Tensor:
        """What the layer's output gets more, of its input; ``[S, B, outputs]``."""
        inner_SBR = self._reduced(F.linear(x_SBI, self.A)) * self._scale
        if len(self._rows) == 1:
            return F.linear(inner_SBR, self.B)
        inner = iter(inner_SBR.split(self._rank, dim=-1))
        sizes = [count for count, has in zip(self._rows, self._adapted, strict=True) if has]
        own = iter(self.B.view(self._groups, -1, self._rank).split(sizes, dim=1))
        made = []
        for count, has in zip(self._rows, self._adapted, strict=True):
            shape = (*inner_SBR.shape[:-1], self._groups, count)
            made.append(F.linear(next(inner), next(own).flatten(0, 1)).view(shape) if has else x_SBI.new_zeros(shape))
        return torch.cat(made, dim=-1).flatten(-2)

    def _reduced(self, inner_SBR: Tensor) -> Tensor:
        """``A x`` at the positions that the layer's output has."""
        reduced: Tensor
        if self._row_parallel and self._sequence_parallel:
            reduced = reduce_scatter_to_sequence_parallel_region(inner_SBR, group=self._group)
        elif self._row_parallel:
            reduced = reduce_from_tensor_model_parallel_region(inner_SBR, group=self._group)
        elif self._sequence_parallel:
            reduced = gather_from_sequence_parallel_region(inner_SBR, group=self._group)
        else:
            reduced = copy_to_tensor_model_parallel_region(inner_SBR, group=self._group)
        return reduced


def add(model: LanguageModel, lora: Lora) -> None:
    """Give a model adapters, and let nothing else of it be trained.

    Args:
        model: This rank's stage, on its device.
        lora: The adapters' settings.

    Raises:
        ValueError: The model has no such matrices, or is a mixture of experts and they are asked for in an expert.
    """
    hf = model.hf_config
    family = family_of(hf)
    found = lora.model_problems(
        family.fused, family.experts(hf) is not None, family.latent(hf) is not None, model.trainable_layers
    )
    if found:
        raise ValueError(found[0])
    chosen = lora.matrices(family.fused, model.trainable_layers)
    size = model.config.kv_channels
    queries = model.config.num_attention_heads // model.config.num_query_groups
    model.requires_grad_(False)
    for layer in model.decoder.layers:
        if model.trainable_layers and layer.layer_number - 1 not in model.trainable_layers.trained_layers:
            continue
        for name, targets in chosen.items():
            linear = getattr(layer.self_attention if name in ATTENTION else layer.mlp, name)
            matrices = (FUSED if family.fused else MATRICES)[name]
            outputs = linear.weight.size(0)
            rows = {"linear_qkv": (queries * size, size, size), "linear_fc1": (outputs // 2, outputs // 2)}.get(name)
            rows = rows if rows is not None and len(matrices) > 1 else (outputs,)
            adapted = tuple(matrix in targets for matrix in matrices)
            linear.lora = Adapter(linear, lora, rows, adapted, name in ROW_PARALLEL)
            linear.register_forward_hook(_add)
    model.lora = lora


def _add(linear: Any, given: tuple[Tensor, ...], made: tuple[Tensor, Tensor | None]) -> Any:
    """Megatron's layers return their output and, where it is added later, their bias."""
    return (made[0] + linear.lora(given[0]), made[1]) if linear.lora.enabled else None


def of(model: LanguageModel) -> list[Adapter]:
    """The adapters of this rank's stage."""
    return [module for module in model.modules() if isinstance(module, Adapter)]


@contextmanager
def disabled(model: LanguageModel) -> Iterator[None]:
    """The model as it was before it was given adapters."""
    found = of(model)
    for adapter in found:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in found:
            adapter.enabled = True


@torch.no_grad()
def extrapolate(model: LanguageModel, factor: float) -> None:
    """Multiply what the adapters add to the weights by ``factor``."""
    for adapter in of(model):
        adapter.B.copy_(adapter.B.float() * factor)
