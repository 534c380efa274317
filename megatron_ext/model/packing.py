"""Texts of a forward pass in one row of tokens, without padding: linear layers see tokens, attention sees texts.

What texts begin with alike may be there once. A model is given a ``Reading`` in the place of an attention mask: a
``Packing``; a ``Continuation`` where texts go on that have keys and values in a cache
(``megatron_ext.model.continuation``); or ``PackedRows`` to train on (``megatron_ext.model.packed_rows``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_ext.model.cache import Cache, Kept

# Attention of queries ``[queries, B, heads, d]`` to keys ``[keys, B, groups, d]`` with their values
# ``[keys, B, groups, e]``, where the mask does not forbid it: bool, broadcastable to ``[B, heads, queries, keys]``, or
# None for causal attention. Gives ``[queries, B, heads * e]``.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Reading(ABC):
    """Where the ``T`` tokens of a row stand in their texts.

    Attributes:
        positions_T: int64, the place of each token in its text.
    """

    positions_T: Tensor

    @abstractmethod
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None,
        attend: Attend,
    ) -> Tensor:
        """Attention of every token to its text.

        Args:
            query: ``[T, 1, heads, d]``, rotated by ``positions_T``.
            key: ``[T, 1, groups, d]``, as well.
            value: ``[T, 1, groups, e]``.
            window: How many of the newest positions a position sees; None for all.
            attend: The model's own, which knows its scale.

        Returns:
            ``[T, 1, heads * e]``.
        """


@dataclass(frozen=True)
class Part:
    """Stretches of ``R`` texts whose attention is computed at a time, padded on the right.

    Attributes:
        queries_RQ: int64, places of the stretches' tokens in the row of tokens.
        keys_RK: int64, places of each text's tokens, from its first to the last of the stretch.
        positions_RQ: int64, the place of each query in its text, 0 for padding; None where every stretch begins with
            its text, so that attention is causal.
    """

    queries_RQ: Tensor
    keys_RK: Tensor
    positions_RQ: Tensor | None
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def forbidden(self, window: int | None) -> Tensor | None:
        """What queries must not attend to, made for the first layer that asks.

        Args:
            window: How many of the newest positions a position sees; None for all.

        Returns:
            bool ``[R, 1, Q, K]``; None for causal attention.
        """
        if window not in self._masks:
            self._masks[window] = self._forbidden(window)
        return self._masks[window]

    def _forbidden(self, window: int | None) -> Tensor | None:
        length = self.keys_RK.size(1)
        if self.positions_RQ is None and (window is None or length <= window):
            return None
        queries_RQ = self.positions_RQ
        if queries_RQ is None:
            queries_RQ = torch.arange(length, device=self.keys_RK.device).unsqueeze(0)
        return hidden(queries_RQ, length, window)


def select(values_T: Tensor, places: Tensor) -> Tensor:
    """``values_T[places]`` for places of two dimensions, in a fifth of the time of plain indexing on a CPU.

    Args:
        values_T: ``[T, ...]``.
        places: int64 ``[R, Q]``.

    Returns:
        ``[R, Q, ...]``.
    """
    return values_T.index_select(0, places.flatten()).unflatten(0, places.shape)


def hidden(queries_RQ: Tensor, length: int, window: int | None) -> Tensor:
    """Which of ``length`` positions queries at some positions must not attend to.

    Args:
        queries_RQ: int64, positions in each text.
        length: How many positions there are.
        window: How many of the newest positions a position sees; None for all.

    Returns:
        bool ``[R, 1, Q, length]``.
    """
    key_K = torch.arange(length, device=queries_RQ.device)
    query_R1Q1 = queries_RQ[:, None, :, None]
    later = key_K > query_R1Q1
    return later if window is None else later | (key_K <= query_R1Q1 - window)


@dataclass(frozen=True)
class Packing(Reading):
    """Where the ``T`` tokens of a row stand in their texts.

    Attributes:
        positions_T: int64, the place of each token in its text.
        parts: Whose stretches hold every token once.
        order_T: int64, where the parts' queries, one part's ``[R * Q]`` after the other's, have each token.
        kept: What of it a cache keeps; None where there is none.
    """

    positions_T: Tensor
    parts: Sequence[Part]
    order_T: Tensor
    kept: Kept | None = None

    def with_earlier(self, cache: Cache, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Continuation.with_earlier``: the texts are new, so that there is nothing earlier."""
        assert self.kept is not None
        kept = self.kept
        cache.write(layer, kept.rows_N, kept.positions_N, key[kept.tokens_N], value[kept.tokens_N])
        return key, value

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None,
        attend: Attend,
    ) -> Tensor:
        """Attention of every token to its text; see ``Reading``."""
        found = []
        for part in self.parts:
            q, k, v = (
                select(tensor.squeeze(1), places).transpose(0, 1)
                for tensor, places in ((query, part.queries_RQ), (key, part.keys_RK), (value, part.keys_RK))
            )
            out_QRE = attend(q, k, v, part.forbidden(window))
            found.append(out_QRE.transpose(0, 1).flatten(0, 1))
        return torch.cat(found).index_select(0, self.order_T).unsqueeze(1)


@dataclass(frozen=True)
class Stretch:
    """A text's tokens from ``start`` on, which the row has for this text; those before it has for an earlier one.

    Attributes:
        path: Places of all of the text's tokens in the row.
        start: How many of them are an earlier text's.
    """

    path: Sequence[int]
    start: int


# A part's stretches are padded to its longest one; its shortest text has at least this share of its longest's tokens.
ALIKE = 0.8


def pack(stretches: Sequence[Stretch], key_budget: int, device: torch.device) -> Packing:
    """The packing of texts whose stretches hold each token of a row once.

    Args:
        stretches: One of each text.
        key_budget: Bound on the keys of a part, padding included, which always has one text.
        device: Where the tensors go.
    """
    positions, order = ([0] * sum(len(each.path) - each.start for each in stretches) for _ in range(2))
    parts, end = [], 0
    ordered = sorted(stretches, key=lambda each: (each.start > 0, -len(each.path), each.start, each.path[-1]))
    while ordered:
        first = ordered[0]
        most = max(1, key_budget // len(first.path))
        here = [
            each
            for each in ordered[:most]
            if (each.start > 0) == (first.start > 0) and len(each.path) >= ALIKE * len(first.path)
        ]
        ordered = ordered[len(here) :]
        width = max(len(each.path) - each.start for each in here)
        for row, each in enumerate(here):
            for position in range(each.start, len(each.path)):
                positions[each.path[position]] = position
                order[each.path[position]] = end + row * width + position - each.start
        end += len(here) * width
        parts.append(_part(here, width, device))
    positions_T, order_T = (torch.tensor(numbers, device=device) for numbers in (positions, order))
    return Packing(positions_T, parts, order_T)


def _part(stretches: Sequence[Stretch], width: int, device: torch.device) -> Part:
    def padded(rows: Sequence[Sequence[int]], length: int, filler: int) -> Tensor:
        return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows], device=device)

    longest = max(len(each.path) for each in stretches)
    # Padding is any token: no query that counts sees it.
    filler = stretches[0].path[0]
    queries = padded([each.path[each.start :] for each in stretches], width, filler)
    keys = padded([each.path for each in stretches], longest, filler)
    if stretches[0].start == 0:
        return Part(queries, keys, None)
    return Part(queries, keys, padded([range(each.start, len(each.path)) for each in stretches], width, 0))
