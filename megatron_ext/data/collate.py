"""Sequences under one row numbering, dealt to data-parallel ranks and made into tensors.

A row is numbered over all files of a dataset. -1 stands for a row that only fills a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_ext.config import Positions
from megatron_ext.data.sequences import Sequences


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of one forward pass, and the ``N`` positions that a loss sees.

    Attributes:
        tokens: int64 ``[B, S]``, padded on the right; packed ``[1, T]``, one sequence after another.
        index: int64 ``[N]``, places of the positions in hidden states flattened to ``[S * B, H]``.
        targets: int64 ``[N]``, the tokens that are predicted there, or the last token itself where none follows.
        sequence: int64 ``[N]``, the row of each position.
        real: bool ``[B]``, false for rows that only fill the batch.
        reference_logps: fp32 ``[B]``, each sequence's log-probability under the model before unlearning.
        lengths: How many of the packed tokens belong together, which sum to ``T``; None where nothing is packed.
    """

    tokens: torch.Tensor
    index: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    real: torch.Tensor
    reference_logps: torch.Tensor | None = None
    lengths: tuple[int, ...] | None = None


class SequenceDataset:
    """Sequences of one or several files under one row numbering.

    Attributes:
        parts: The files' sequences.
        starts: int64 ``[files + 1]``, the row that each file begins with.
        lengths: int64 ``[rows]``, tokens of each row, prompt included.
        label_counts: int64 ``[rows]``, labelled tokens of each row.
        reference_logps: fp64 ``[rows]``, each row's log-probability under the model before unlearning, or None.
    """

    def __init__(self, parts: Sequence[Sequences], reference_logps: np.ndarray | None = None) -> None:
        """Number the rows of several files, one file after the other.

        Args:
            parts: The files' sequences.
            reference_logps: fp64 ``[rows]``, in the order of the numbering.
        """
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(len(p) for p in parts)])
        self.lengths = np.concatenate([p.lengths for p in parts])
        self.label_counts = np.concatenate([p.label_counts for p in parts])
        self.reference_logps = reference_logps

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, index: int) -> tuple[np.ndarray, int]:
        """Token ids (int32) and prompt length of one row."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part].row(index - int(self.starts[part]))

    def micro_batches(
        self,
        rows: Sequence[int],
        size: int,
        data_rank: int,
        data_size: int,
        tokens: int | None = None,
        packed: bool = False,
        beside: Mapping[int, int] | None = None,
    ) -> list[list[int]]:
        """This data-parallel rank's micro-batches of a global batch; equally many on every rank.

        Rows are sorted by length and dealt so that ranks work on similar lengths at the same time.

        Args:
            rows: The global batch.
            size: Rows of a micro-batch; -1 fills up.
            data_rank: This rank's number among data-parallel ranks.
            data_size: How many there are.
            tokens: Of a micro-batch, padding included, at most, but always of one row; those of longer rows then have
                fewer than ``size``.
            packed: Whether there is no padding.
            beside: Of each row another one that its micro-batch holds too, whose tokens count among ``tokens``.

        Returns:
            The rows of each micro-batch, without those beside them.
        """
        size_of = {row: int(self.lengths[row]) for row in rows}
        if beside is not None and tokens is not None:
            both = {row: (size_of[row], int(self.lengths[beside[row]])) for row in rows}
            size_of = {row: sum(pair) if packed else 2 * max(pair) for row, pair in both.items()}
        ordered = sorted(rows, key=lambda row: (-size_of[row], row))
        found: list[list[int]] = []
        while ordered:
            count = size
            if tokens is not None:
                left = math.ceil(len(ordered) / data_size)
                longest = [size_of[row] for row in ordered[: min(size, left)]]
                ends = np.cumsum(longest if packed else np.full(len(longest), longest[0]))
                count = max(1, int((ends <= tokens).sum()))
            own = ordered[data_rank * count : (data_rank + 1) * count]
            found.append(own + [-1] * (count - len(own)))
            ordered = ordered[count * data_size :]
        return found

    def collate(
        self,
        rows: Sequence[int],
        device: torch.device,
        positions: Positions = "predicting",
        multiple: int = 1,
        packed: bool = False,
    ) -> MicroBatch:
        """Tensors of one micro-batch.

        Args:
            rows: Row numbers; -1 stands for a row without any position, which only fills the batch.
            device: Where the tensors go.
            positions: Which positions of each sequence ``index``, ``targets`` and ``sequence`` list.
            multiple: The padded length is a multiple of it; otherwise it is that of the longest sequence, or packed the
                sum of all.
            packed: Whether sequences follow one another, without padding.

        Returns:
            The micro-batch, with ``B`` the number of ``rows``.
        """
        own = [0 if row < 0 else int(self.lengths[row]) for row in rows]
        longest = max(1, sum(own) if packed else max(own, default=0))
        length = math.ceil(longest / multiple) * multiple
        tokens_BS = np.zeros((1 if packed else len(rows), length), np.int64)
        # Of each row where it begins in ``tokens_BS``, as rows lie in memory.
        begins = np.cumsum([0, *own]) if packed else np.arange(len(rows)) * length
        index, targets, sequence = [], [], []
        for place, row in enumerate(rows):
            if row < 0:
                continue
            ids, prompt = self.row(row)
            tokens_BS.reshape(-1)[begins[place] : begins[place] + len(ids)] = ids
            first = {"predicting": prompt - 1, "labelled": prompt, "all": 0}[positions]
            places = np.arange(first, len(ids) - (positions == "predicting"), dtype=np.int64)
            index.append(places + begins[place] if packed else places * len(rows) + place)
            targets.append(ids[np.minimum(places + 1, len(ids) - 1)].astype(np.int64))
            sequence.append(np.full(len(places), place, np.int64))
        arrays = {"tokens": tokens_BS, "real": np.array([row >= 0 for row in rows])}
        arrays |= {"index": _joined(index), "targets": _joined(targets), "sequence": _joined(sequence)}
        if self.reference_logps is not None:
            values = [float(self.reference_logps[row]) if row >= 0 else 0.0 for row in rows]
            arrays["reference_logps"] = np.array(values, np.float32)
        filled = [each for each in (*own, length - sum(own)) if each] if packed else None
        return MicroBatch(**transfer(arrays, device), lengths=tuple(filled) if filled else None)


def transfer(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors of several arrays on a device: to a GPU one copy of all of them, which nothing waits for.

    Args:
        arrays: By name.
        device: Where they go; on the CPU they stay where they are.

    Returns:
        The tensors, of the arrays' shapes and types.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    return unpacked(pack(arrays, pin=True).to(device, non_blocking=True), arrays)


def pack(arrays: Mapping[str, np.ndarray], pin: bool) -> torch.Tensor:
    """The bytes of several arrays end to end, each from a multiple of eight bytes on: uint8, on the host.

    Args:
        arrays: By name.
        pin: Whether the host's memory is pinned, as a copy that nothing waits for needs it.

    Returns:
        What ``unpacked`` takes.
    """
    packed = torch.zeros(sum(map(_room, arrays.values())), dtype=torch.uint8, pin_memory=pin)
    host, start = packed.numpy(), 0
    for array in arrays.values():
        host[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        start += _room(array)
    return packed


def unpacked(packed: torch.Tensor, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Views of ``packed`` with the shapes and types of the arrays that it was made of."""
    tensors, start = {}, 0
    for name, array in arrays.items():
        kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
        tensors[name] = packed[start : start + array.nbytes].view(kind).view(array.shape)
        start += _room(array)
    return tensors


def _room(array: np.ndarray) -> int:
    return math.ceil(array.nbytes / 8) * 8


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """int64 ``[N]``: the parts end to end, of which there may be none."""
    return np.concatenate([np.empty(0, np.int64), *parts])
