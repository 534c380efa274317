"""How Hugging Face tensors are split over tensor-parallel ranks: which slices of them are which part of a parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


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


def of_stack(ways: int, dimension: int) -> Kind:
    """As ``of_experts`` of tensors that have all experts, one after the other, each split along ``dimension``."""
    return partial(_of_stack, ways=ways, dimension=dimension)


def joined(kind: Kind, rows: tuple[int, ...]) -> Kind:
    """As ``kind`` of tensors with so many rows each, which lie one below the other in a single Hugging Face tensor."""
    return partial(_joined, kind=kind, rows=rows)


def _of_experts(shapes: Shapes, rank: int, size: int, kind: Kind, ways: int) -> list[Part]:
    group, place = divmod(rank, size // ways)
    each = len(shapes) // ways
    own = list(shapes)[group * each : (group + 1) * each]
    return kind({name: shapes[name] for name in own}, place, size // ways)


def _of_stack(shapes: Shapes, rank: int, size: int, ways: int, dimension: int) -> list[Part]:
    group, place = divmod(rank, size // ways)
    found = []
    for name, shape in shapes.items():
        width = shape[dimension] // (size // ways)
        for local, number in enumerate(range(group, shape[0], ways)):
            index = [slice(number, number + 1), *[slice(None)] * (len(shape) - 1)]
            index[dimension] = slice(place * width, (place + 1) * width)
            found.append(Part(name, tuple(index), partial(_one_row, local)))
    return found


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


def _one_row(row: int, local: Tensor) -> Tensor:
    return local[row : row + 1]
