"""Gradients as vectors: inner products that count every parameter once, whatever the layout.

A rank holds flat fp32 pieces of the gradient: all of its parameters', or with the distributed optimizer its 1/dp of
them. Two things would be counted more than once: parameters replicated over tensor-parallel ranks (norms), and the
embedding that the first and last pipeline stage share. One rank counts each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_ext.runtime import Ranks

# Elements converted to fp64 at a time: small enough for a core's cache, large enough to amortise a kernel launch.
_CHUNK = {"cpu": 1 << 16, "cuda": 1 << 24}

Vector = list[Tensor]


class GradientSpace:
    """The space that reduced, accumulated gradients of one model live in; ``held`` is the gradient in DDP's buffers."""

    def __init__(self, model: DistributedDataParallel, ranks: Ranks) -> None:
        self.ranks = ranks
        self.sharded = ranks.layout.distributed_optimizer
        self.held: Vector = []
        self._counted: list[list[tuple[int, int]]] = []
        for buffer in model.buffers:
            for bucket in buffer.buckets:
                width = bucket.grad_data.numel() // (ranks.layout.data if self.sharded else 1)
                start = width * ranks.data_rank if self.sharded else 0
                self.held.append(bucket.grad_data[start : start + width])
                self._counted.append(self._ranges(bucket, start, start + width))

    def _ranges(self, bucket: object, start: int, end: int) -> list[tuple[int, int]]:
        """Merged ranges, relative to ``start``, of the parameters in ``[start, end)`` that this rank counts."""
        if not self.sharded and self.ranks.data_rank != 0:
            return []
        merged: list[tuple[int, int]] = []
        for parameter, (low, high) in sorted(bucket.param_to_index.items(), key=lambda item: item[1]):  # type: ignore[attr-defined]
            low, high = max(low, start) - start, min(high, end) - start
            if low >= high or not self._owns(parameter):
                continue
            if merged and merged[-1][1] == low:
                merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
        return merged

    def _owns(self, parameter: Tensor) -> bool:
        if getattr(parameter, "shared", False):  # the last stage's copy of a tied embedding
            return False
        return getattr(parameter, "tensor_model_parallel", False) or self.ranks.tensor_rank == 0

    def copy(self) -> Vector:
        """A copy of the held gradient: the one vector that a rule with two gradients costs."""
        return [piece.clone() for piece in self.held]

    def products(self, vectors: Sequence[Vector]) -> Tensor:
        """This rank's part of the inner products of every pair: fp64 ``[k, k]``; their sum over all ranks is the Gram
        matrix. No collective and no host synchronisation."""
        total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=self.ranks.device)
        chunk = _CHUNK[self.ranks.device.type]
        for piece, ranges in enumerate(self._counted):
            for low, high in ranges:
                for at in range(low, high, chunk):
                    stop = min(at + chunk, high)
                    part = torch.stack([vector[piece][at:stop].double() for vector in vectors])
                    total += part @ part.T
        return total

    def reduce(self, values: Tensor) -> list[float]:
        """Sum fp64 ``[m]`` over all ranks: the one all-reduce of an optimizer step's scalars."""
        if self.ranks.world_size > 1:
            dist.all_reduce(values)
        return values.tolist()  # type: ignore[no-any-return]

    def combine(self, scale: float, other: Vector | None = None, other_scale: float = 0.0) -> None:
        """held <- scale * held + other_scale * other, in place."""
        for piece, mine in enumerate(self.held):
            if scale != 1.0:
                mine.mul_(scale)
            if other is not None and other_scale != 0.0:
                mine.add_(other[piece], alpha=other_scale)
