"""The key-value cache of a batch of texts, each of which may be of another length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor


class Cache(StaticInferenceContext):
    """Rotated keys, and values, of the texts that a batch of answers continues.

    Of each layer there are two tensors ``[rows, groups, positions, d]``: what attention reads of a row lies together.

    Attributes:
        reading: What a forward pass under way reads: a ``Packing`` or a ``Continuation``.
    """

    reading: Any

    def __init__(self, rows: int, positions: int) -> None:
        super().__init__(rows, positions)
        self._rows = rows

    def write(self, layer: int, rows_N: Tensor, positions_N: Tensor, key: Tensor, value: Tensor) -> None:
        """Put keys ``[N, 1, groups, d]`` and values ``[N, 1, groups, e]`` where they belong."""
        memory = self.key_value_memory_dict
        if layer not in memory:
            shape = (self._rows, key.size(2), self.max_sequence_length)
            # Attention multiplies what it may not see by zero, which leaves no number that is not finite.
            memory[layer] = tuple(new.new_zeros(*shape, new.size(3)) for new in (key, value))
        for own, new in zip(memory[layer], (key, value), strict=True):
            own[rows_N, :, positions_N] = new.squeeze(1)

    def keep_rows(self, index: Tensor) -> None:
        """Drop the rows that are not in ``index``."""
        self._rows = len(index)
        for layer, tensors in self.key_value_memory_dict.items():
            self.key_value_memory_dict[layer] = tuple(tensor.index_select(0, index) for tensor in tensors)


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
