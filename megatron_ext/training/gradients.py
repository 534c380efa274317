"""Gradients as vectors: inner products that count every parameter once, whatever the layout.

A rank holds flat pieces of the gradient: all of its parameters', or with the distributed optimizer its 1/dp of
them. Two things would be counted more than once: parameters replicated over tensor-parallel ranks (norms), and the
embedding that the first and last pipeline stage share. One rank counts each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.training import tensor_runs, vector_kernels
from megatron_ext.training.tensor_runs import Run
from megatron_ext.updates import Direction, Vector

# Elements converted to fp64 at a time: small enough for a core's cache, large enough to amortise a kernel launch. In
# fp32, products of vanishing gradients would underflow.
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 22}

# Of each parameter the range of elements that it has in a bucket.
Index = dict[Tensor, tuple[int, int]]


@dataclass(frozen=True)
class _Overlap:
    """The part of a parameter that lies in one of this rank's pieces of the gradient.

    Attributes:
        parameter: The parameter.
        piece: The number of the piece.
        in_piece: Where in the piece.
        in_parameter: Where in the flattened parameter.
    """

    parameter: Tensor
    piece: int
    in_piece: slice
    in_parameter: slice


class GradientSpace:
    """The space that reduced, accumulated gradients of one model live in.

    ``held`` is the gradient in the buffers of DistributedDataParallel: this rank's flat pieces of it, one a bucket, in
    fp32 or as ``runtime.memory.gradients`` says, as further vectors are.
    """

    def __init__(self, model: DistributedDataParallel, ranks: Ranks) -> None:
        self.ranks, self._model = ranks, model.module
        self.sharded = ranks.layout.distributed_optimizer
        self.held: Vector = []
        self._counted: list[list[tuple[int, int]]] = []
        self._buckets = [bucket for buffer in model.buffers for bucket in buffer.buckets]
        self._indices = [_index(buffer, bucket) for buffer in model.buffers for bucket in buffer.buckets]
        self._starts: list[int] = []
        self._spare: list[Vector] = []
        for bucket, index in zip(self._buckets, self._indices, strict=True):
            width = bucket.grad_data.numel() // (ranks.layout.data if self.sharded else 1)
            start = width * ranks.data_rank if self.sharded else 0
            self._starts.append(start)
            self.held.append(bucket.grad_data[start : start + width])
            self._counted.append(self._ranges(index, start, start + width))

    def _ranges(self, index: Index, start: int, end: int) -> list[tuple[int, int]]:
        """Merged ranges, relative to ``start``, of the parameters in ``[start, end)`` that this rank counts."""
        merged: list[tuple[int, int]] = []
        for parameter, (low, high) in sorted(index.items(), key=lambda item: item[1]):
            low, high = max(low, start) - start, min(high, end) - start
            if low >= high or not self._counts(parameter):
                continue
            if merged and merged[-1][1] == low:
                merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
        return merged

    def _counts(self, parameter: Tensor) -> bool:
        """Whether inner products count this rank's elements of a parameter."""
        if not self.sharded and self.ranks.data_rank != 0:
            return False
        if getattr(parameter, "shared", False):  # the last stage's copy of a tied embedding
            return False
        return getattr(parameter, "tensor_model_parallel", False) or self.ranks.tensor_rank == 0

    def copy(self) -> Vector:
        """A copy of the held gradient: the one vector that a rule with two gradients costs."""
        vector = self._spare.pop() if self._spare else [torch.empty_like(piece) for piece in self.held]
        for copied, piece in zip(vector, self.held, strict=True):
            copied.copy_(piece)
        return vector

    def release(self, vector: Vector) -> None:
        """Keep the memory of ``vector``, which nobody reads any more, for the next ``copy``.

        On a CPU, memory that is new in every step costs several times the copying, page by page.
        """
        self._spare = [vector]

    def products(self, vectors: Sequence[Vector]) -> Tensor:
        """This rank's part of the inner products of every pair. No collective and no host synchronisation.

        Args:
            vectors: ``k`` vectors.

        Returns:
            fp64 ``[k, k]``; its sum over all ranks is the Gram matrix.
        """
        if len(vectors) == 2 and self._fused:
            return self._fused_products(*vectors)
        counted = [[Run(0, low, high) for low, high in ranges] for ranges in self._counted]
        return self._products(vectors, counted, 1)[0]

    def tensor_products(self, vectors: Sequence[Vector]) -> Tensor:
        """As ``products``, of each Hugging Face tensor's elements by themselves.

        Args:
            vectors: ``k`` vectors.

        Returns:
            fp64 ``[t, k, k]`` for the tensors of ``tensor_runs.names``, those that other ranks have too.
        """
        counted = [
            [run for parameter, found in runs for run in found if self._counts(parameter)] for runs in self._tensor_runs
        ]
        return self._products(vectors, counted, len(tensor_runs.names(self._model)))

    def _products(self, vectors: Sequence[Vector], counted: list[list[Run]], tensors: int) -> Tensor:
        """fp64 ``[tensors, k, k]``: of each tensor the Gram matrix over its runs in each piece."""
        longest = max(run.high - run.low for run in [Run(0, 0, 1), *chain(*counted)])
        chunk = min(_CHUNK[self.ranks.device.type], longest)
        totals = torch.zeros(tensors, len(vectors), len(vectors), dtype=torch.float64, device=self.ranks.device)
        values = totals.new_empty(len(vectors), chunk)
        for piece, runs in enumerate(counted):
            for run in runs:
                for begin in range(run.low, run.high, chunk):
                    end = min(begin + chunk, run.high)
                    part = values[:, : end - begin]
                    for row, vector in zip(part, vectors, strict=True):
                        row.copy_(vector[piece][begin:end])
                    totals[run.tensor].addmm_(part, part.T)
        return totals

    @property
    def _fused(self) -> bool:
        """Whether two vectors are read in one pass: on a GPU where Triton works."""
        return not self.ranks.on_cpu and vector_kernels.usable()

    def _fused_products(self, a: Vector, b: Vector) -> Tensor:
        """``products`` of two vectors."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)
        for x, y, ranges in zip(a, b, self._counted, strict=True):
            for low, high in ranges:
                sums += vector_kernels.products(x[low:high], y[low:high])
        return sums[torch.tensor([[0, 1], [1, 2]], device=sums.device)]

    def reduce(self, values: Tensor) -> list[float]:
        """Sum fp64 ``[m]`` over all ranks, in place: the one all-reduce of an optimizer step's scalars."""
        if self.ranks.world_size > 1:
            dist.all_reduce(values)
        totals: list[float] = values.tolist()
        return totals

    def combine(self, scale: float, other: Vector | None = None, other_scale: float = 0.0) -> None:
        """held <- scale * held + other_scale * other, in place; computed in fp32, so that bf16 is rounded once."""
        for number, piece in enumerate(self.held):
            if other is not None and scale != 1.0 and other_scale != 0.0 and self._fused:
                vector_kernels.combine(piece, scale, other[number], other_scale)
                continue
            for part, added in self._stretches(piece, None if other is None else other[number]):
                total = part.float() if part.dtype != torch.float32 else part
                if scale != 1.0:
                    total.mul_(scale)
                if added is not None and other_scale != 0.0:
                    total.add_(added, alpha=other_scale)
                if total is not part:
                    part.copy_(total)

    def _stretches(self, piece: Tensor, other: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Both whole in fp32, and in bf16 a stretch at a time, of which an fp32 copy is small."""
        chunk = piece.numel() if piece.dtype == torch.float32 else _CHUNK[self.ranks.device.type]
        for begin in range(0, piece.numel(), max(1, chunk)):
            own = slice(begin, begin + chunk)
            yield piece[own], None if other is None else other[own]

    def combine_tensors(self, directions: Sequence[Direction], forget: Vector, scale: float) -> None:
        """held <- scale * (direction.retain * held + direction.forget * forget), each tensor by its own direction.

        Args:
            directions: One for each of ``tensor_runs.names``.
            forget: The forget gradient; the held one is the retain gradient.
            scale: Of all directions.
        """
        for held, other, runs in zip(self.held, forget, self._tensor_runs, strict=True):
            for run in chain.from_iterable(found for _, found in runs):
                direction, own = directions[run.tensor], slice(run.low, run.high)
                held[own].mul_(direction.retain * scale).add_(other[own], alpha=direction.forget * scale)

    def elementwise(self, function: Callable[..., Tensor], *vectors: Vector) -> Vector:
        """A new vector: ``function`` of the vectors' elements at each place, given a stretch of each at a time."""
        made, chunk = [torch.empty_like(piece) for piece in self.held], _CHUNK[self.ranks.device.type]
        for number, piece in enumerate(made):
            for begin in range(0, piece.numel(), chunk):
                part = slice(begin, begin + chunk)
                piece[part] = function(*(vector[number][part] for vector in vectors))
        return made

    def linear(self, *terms: tuple[float, Vector]) -> Vector:
        """A new vector: the sum of ``coefficient * vector`` over ``terms``."""
        (scale, first), *others = terms
        total = [piece * scale for piece in first]
        for scale, vector in others:
            for summed, piece in zip(total, vector, strict=True):
                summed.add_(piece, alpha=scale)
        return total

    def hold(self, vector: Vector) -> None:
        """held <- vector."""
        for piece, value in zip(self.held, vector, strict=True):
            piece.copy_(value)

    def weights(self) -> Vector:
        """A copy of the weights, laid out as gradients are; fp32 weights only."""
        pieces = [torch.zeros_like(piece) for piece in self.held]
        for each in self._overlaps():
            pieces[each.piece][each.in_piece] = each.parameter.detach().view(-1)[each.in_parameter]
        return pieces

    def set_weights(self, base: Vector, scale: float = 0.0, vector: Vector | None = None) -> None:
        """weights <- base + scale * vector. With sharded gradients, one all-gather a bucket over data-parallel ranks.

        Every rank calls it; copies of a parameter on several ranks get the same value, as their gradients are equal.
        """
        for each in self._overlaps():
            value = base[each.piece][each.in_piece]
            if vector is not None and scale != 0.0:
                value = value.add(vector[each.piece][each.in_piece], alpha=scale)
            each.parameter.detach().view(-1)[each.in_parameter] = value
        if self.sharded and self.ranks.layout.data > 1:
            for bucket, held, start in zip(self._buckets, self.held, self._starts, strict=True):
                own = bucket.param_data[start : start + held.numel()]  # where it belongs: as megatron-core gathers
                dist.all_gather_into_tensor(bucket.param_data, own, group=self.ranks.data_group)

    @contextmanager
    def perturbed_weights(self, vector: Vector, *scales: float) -> Iterator[Iterator[float]]:
        """Within the context, iterate over ``scales`` with the weights at ``theta + scale * vector``.

        After the context the weights are ``theta`` again, to the bit, also where an error ended it. Holds one vector
        more.
        """
        base = self.weights()

        def visit() -> Iterator[float]:
            for scale in scales:
                self.set_weights(base, scale, vector)
                yield scale

        try:
            yield visit()
        finally:
            self.set_weights(base)

    @cached_property
    def _tensor_runs(self) -> list[list[tuple[Tensor, list[Run]]]]:
        """Of each piece the parameters in it, with the runs of Hugging Face tensors, counted from the piece's start."""
        known = tensor_runs.runs(self._model, self.ranks)
        found = []
        for index, piece, start in zip(self._indices, self.held, self._starts, strict=True):
            of_piece = []
            for parameter, (low, _) in index.items():
                moved = (run.within(start - low, start - low + piece.numel()) for run in known[parameter])
                of_piece.append((parameter, [run for run in moved if run is not None]))
            found.append(of_piece)
        return found

    def _overlaps(self) -> Iterator[_Overlap]:
        """Each parameter that overlaps this rank's pieces."""
        for number, (index, piece, start) in enumerate(zip(self._indices, self.held, self._starts, strict=True)):
            for parameter, (low, high) in index.items():
                begin, end = max(low, start), min(high, start + piece.numel())
                if begin < end:
                    in_piece, in_parameter = slice(begin - start, end - start), slice(begin - low, end - low)
                    yield _Overlap(parameter, number, in_piece, in_parameter)


def _index(buffer: Any, bucket: Any) -> Index:
    """Where each parameter of ``bucket`` lies in it. Its own ``param_to_index`` leaves out the padding that aligns
    parameters for the distributed optimizer."""
    places = buffer.param_index_map.items()
    return {p: (low - bucket.offset, high - bucket.offset) for p, (low, high, i) in places if i == bucket.bucket_id}
