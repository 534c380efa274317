"""The key-value cache of a batch of texts, each of which may be of another length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor


class Cache(StaticInferenceContext):
    """Rotated keys, and values, of the texts that a batch of answers continues.

    Of each layer there are two tensors ``[rows, groups, positions, d]``: what attention reads of a row lies together.

    Attributes:
        rows: How many texts there is room for.
        reading: What a forward pass under way reads: a ``Packing`` or a ``Continuation``.
    """

    rows: int
    reading: Any

    def __init__(self, rows: int, positions: int) -> None:
        super().__init__(rows, positions)
        self.rows = rows

    def write(self, layer: int, rows_N: Tensor, positions_N: Tensor, key: Tensor, value: Tensor) -> None:
        """Put keys ``[N, 1, groups, d]`` and values ``[N, 1, groups, e]`` where they belong."""
        memory = self.key_value_memory_dict
        if layer not in memory:
            shape = (self.rows, key.size(2), self.max_sequence_length)
            # Attention multiplies what it may not see by zero, which leaves no number that is not finite.
            memory[layer] = tuple(new.new_zeros(*shape, new.size(3)) for new in (key, value))
        for own, new in zip(memory[layer], (key, value), strict=True):
            own[rows_N, :, positions_N] = new.squeeze(1)

    def keep_rows(self, kept: Sequence[int], length: int) -> list[int]:
        """Drop the other rows. What is kept of the last ones moves into the gaps; nothing else is copied.

        Args:
            kept: Which, in ascending order.
            length: Positions that are in use.

        Returns:
            Of each row now the row that it was.
        """
        rows = list(range(len(kept)))
        gaps = sorted(set(rows) - set(kept))
        moved = kept[len(kept) - len(gaps) :]
        for gap, row in zip(gaps, moved, strict=True):
            rows[gap] = row
        for layer, tensors in self.key_value_memory_dict.items():
            to, of = (torch.tensor(places, dtype=torch.int64, device=tensors[0].device) for places in (gaps, moved))
            for tensor in tensors:
                used = tensor[:, :, :length]
                used.index_copy_(0, to, used.index_select(0, of))
            self.key_value_memory_dict[layer] = tuple(tensor[: len(kept)] for tensor in tensors)
        self.rows = len(kept)
        return rows


@dataclass(frozen=True)
class Kept:
    """Which of a row's tokens a cache keeps: ``N`` of them, one more than once where texts share it.

    Attributes:
        tokens_N: int64, their places in the row of tokens.
        rows_N: int64, the cache's row.
        positions_N: int64, the place in the text.
    """

    tokens_N: Tensor
    rows_N: Tensor
    positions_N: Tensor
