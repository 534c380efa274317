"""Where the tokens of a forward pass that continues cached texts stand: any number of each, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from megatron_ext.model.cache import Cache
from megatron_ext.model.packing import Attend, Reading, hidden, select


@dataclass(frozen=True)
class Rows:
    """Rows of a cache whose attention is computed at a time, ``R`` of them.

    Attributes:
        rows_R: int64, which; None for all.
        queries_RQ: int64, places of each row's new tokens among all of them, padded with any.
        positions_RQ: int64, their places in the text, 0 for padding.
        whole: Whether every row has one token, and all stand at the end of the longest text.
    """

    rows_R: Tensor | None
    queries_RQ: Tensor
    positions_RQ: Tensor
    whole: bool
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def forbidden(self, length: int, window: int | None) -> Tensor | None:
        """What queries must not attend to, made for the first layer that asks.

        Args:
            length: The longest text's tokens, always the same.
            window: How many of the newest positions a position sees; None for all.

        Returns:
            bool ``[R, 1, Q, length]``; None for nothing.
        """
        if window not in self._masks:
            seen = self.whole and (window is None or length <= window)
            self._masks[window] = None if seen else hidden(self.positions_RQ, length, window)
        return self._masks[window]


@dataclass(frozen=True)
class Continuation(Reading):
    """Where the ``T`` tokens that continue the texts of a cache of ``B`` rows stand.

    Attributes:
        positions_T: int64, the place of each token in its text.
        rows_T: int64, the cache's row, tokens of one side by side.
        parts: Whose queries hold every token.
        order_T: int64, where the parts' queries, one part's ``[R * Q]`` after the other's, have each token.
        length: The longest text's tokens, these included.
    """

    positions_T: Tensor
    rows_T: Tensor
    parts: Sequence[Rows]
    order_T: Tensor
    length: int

    def with_earlier(self, cache: Cache, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the tokens' keys and values into a layer's cache, and give those of all positions so far.

        Args:
            cache: The texts'.
            layer: The layer's number.
            key: Rotated keys ``[T, 1, groups, d]``.
            value: ``[T, 1, groups, e]``.

        Returns:
            ``[length, B, groups, ...]``.
        """
        cache.write(layer, self.rows_T, self.positions_T, key, value)
        memory = cache.key_value_memory_dict[layer]
        kept_key, kept_value = (kept[:, :, : self.length].permute(2, 0, 1, 3) for kept in memory)
        return kept_key, kept_value

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None,
        attend: Attend,
    ) -> Tensor:
        """As ``Reading.attend``, with keys and values ``[length, B, groups, ...]``."""
        found = []
        for part in self.parts:
            k, v = (_rows(kept, part.rows_R) for kept in (key, value))
            forbidden = part.forbidden(self.length, window)
            out_QRE = attend(select(query.squeeze(1), part.queries_RQ).transpose(0, 1), k, v, forbidden)
            found.append(out_QRE.transpose(0, 1).flatten(0, 1))
        return torch.cat(found).index_select(0, self.order_T).unsqueeze(1)


def _rows(kept: Tensor, rows_R: Tensor | None) -> Tensor:
    """Some rows of ``[length, B, groups, d]``, all where there is None, and as they lie in a cache: row by row."""
    if rows_R is None:
        return kept
    return kept.permute(1, 2, 0, 3).index_select(0, rows_R).permute(2, 0, 1, 3)


def continue_rows(starts: Sequence[int], counts: Sequence[int], device: torch.device) -> Continuation:
    """Where new tokens stand, those of one row of a cache after those of the row before.

    Where few rows have several, attention is computed for these apart: padding costs as much as what it fills up to.

    Args:
        starts: Of each row the place of its first new token in its text.
        counts: Of each row how many new tokens there are; 0 for none.
        device: Where the tensors go.
    """
    firsts = list(accumulate(counts, initial=0))
    several = [row for row, count in enumerate(counts) if count > 1]
    apart = several if 2 * len(several) < len(counts) else []
    parts: list[Rows] = []
    order, end = [0] * sum(counts), 0
    for rows, width in ((range(len(counts)), 1 if apart else max(counts)), (apart, max(counts))):
        if not rows:
            continue
        queries, positions = ([[0] * width for _ in rows] for _ in range(2))
        for place, row in enumerate(rows):
            for i in range(min(width, counts[row])):
                queries[place][i], positions[place][i] = firsts[row] + i, starts[row] + i
                order[firsts[row] + i] = end + place * width + i
        end += len(rows) * width
        whole = width == 1 and set(starts) == {max(starts)} and max(counts) == 1
        of = torch.tensor(apart, device=device) if parts else None
        parts.append(Rows(of, torch.tensor(queries, device=device), torch.tensor(positions, device=device), whole))
    each = [
        (row, start + i) for row, (start, count) in enumerate(zip(starts, counts, strict=True)) for i in range(count)
    ]
    rows_T, positions_T = torch.tensor(each, device=device).unbind(-1)
    return Continuation(
        positions_T, rows_T, parts, torch.tensor(order, device=device), int(max(p for _, p in each)) + 1
    )
