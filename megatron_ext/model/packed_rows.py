"""Whole rows one after another, without padding, for training: linear layers see tokens, attention sees rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from megatron_ext.data.collate import MicroBatch
from megatron_ext.model.packing import Attend, Reading, hidden


@dataclass(frozen=True)
class PackedRows(Reading):
    """Where the ``T`` tokens of rows stand that follow each other.

    Unlike a ``Packing`` it takes every token once and in order, so that its gradient is one of slices.

    Attributes:
        positions_T: int64, the place of each token in its row.
        lengths: Tokens of each row.
    """

    positions_T: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> PackedRows:
        """Rows of these lengths."""
        positions = torch.cat([torch.arange(length) for length in lengths])
        return cls(positions.to(device, non_blocking=True), tuple(lengths))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None,
        attend: Attend,
    ) -> Tensor:
        """Attention of every token to its row; see ``Reading``. Neighbours of one length are computed at a time."""
        runs = [(length, len(list(same))) for length, same in groupby(self.lengths)]
        sizes = [length * count for length, count in runs]
        found = []
        for (length, count), *parts in zip(runs, *(tensor.split(sizes) for tensor in (query, key, value)), strict=True):
            # [count * length, 1, heads, d] -> [length, count, heads, d]
            q, k, v = (part.squeeze(1).unflatten(0, (count, length)).transpose(0, 1) for part in parts)
            out_QRE = attend(q, k, v, self._forbidden(length, window))
            found.append(out_QRE.transpose(0, 1).flatten(0, 1))
        return torch.cat(found).unsqueeze(1)

    def _forbidden(self, length: int, window: int | None) -> Tensor | None:
        if window is None or length <= window:
            return None
        return hidden(torch.arange(length, device=self.positions_T.device).unsqueeze(0), length, window)


def reading_of(batch: MicroBatch) -> PackedRows | None:
    """What stands for the attention mask of a micro-batch; None for causal attention where nothing is packed."""
    return None if batch.lengths is None else PackedRows.of(batch.lengths, batch.tokens.device)
