"""Which sequences make up each optimizer step, and how they are dealt to data-parallel ranks.

The global batch follows from ``(seed, step)`` alone: it is the same at every layout, and a resumed run needs no state
of a data loader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_ext.config import Positions
from megatron_ext.data.sequences import Sequences


@dataclass(frozen=True)
class MicroBatch:
    """Right-padded sequences of one forward pass and the places that a loss looks at.

    ``tokens``: int64 ``[b, s]``. ``index``: int64 ``[n]``, positions in the flattened hidden states ``[s * b]``.
    ``targets``: int64 ``[n]``, the tokens that are predicted there, or the last token itself where none follows.
    ``sequence``: int64 ``[n]``, the row of each position. ``real``: bool ``[b]``, false for rows that only fill the
    batch. ``reference_logps``: fp32 ``[b]`` or None.
    """

    tokens: torch.Tensor
    index: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    real: torch.Tensor
    reference_logps: torch.Tensor | None = None


class SequenceDataset:
    """Sequences of one or several files under one row numbering, with an optional reference log-probability each."""

    def __init__(self, parts: Sequence[Sequences], reference_logps: np.ndarray | None = None) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(len(p) for p in parts)])
        self.lengths = np.concatenate([p.lengths for p in parts])
        self.label_counts = np.concatenate([p.label_counts for p in parts])
        self.reference_logps = reference_logps

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, index: int) -> tuple[np.ndarray, int]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part].row(index - int(self.starts[part]))

    def micro_batches(self, rows: Sequence[int], size: int, data_rank: int, data_size: int) -> list[list[int]]:
        """This data-parallel rank's micro-batches of the global batch ``rows``: equally many on every rank.

        Rows are sorted by length and dealt so that ranks work on similar lengths at the same time; -1 fills up.
        """
        ordered = sorted(rows, key=lambda row: (-int(self.lengths[row]), row))
        slots = math.ceil(len(ordered) / (size * data_size)) * data_size
        ordered += [-1] * (slots * size - len(ordered))
        return [ordered[slot * size : (slot + 1) * size] for slot in range(data_rank, slots, data_size)]

    def collate(
        self, rows: Sequence[int], device: torch.device, where: Positions = "predicting", multiple: int = 1
    ) -> MicroBatch:
        """Tensors of one micro-batch at the positions ``where`` (see ``losses.Loss``); -1 stands for a row without any.

        Padded to its longest member, and from there to a multiple of ``multiple``.
        """
        real = [row for row in rows if row >= 0]
        width = max((int(self.lengths[row]) for row in real), default=1)
        width = math.ceil(width / multiple) * multiple
        tokens = np.zeros((len(rows), width), np.int64)
        index: list[np.ndarray] = [np.empty(0, np.int64)]
        targets: list[np.ndarray] = [np.empty(0, np.int64)]
        sequence: list[np.ndarray] = [np.empty(0, np.int64)]
        for place, row in enumerate(rows):
            if row < 0:
                continue
            ids, prompt = self.row(row)
            tokens[place, : len(ids)] = ids
            first = {"predicting": prompt - 1, "labelled": prompt, "all": 0}[where]
            positions = np.arange(first, len(ids) - (where == "predicting"), dtype=np.int64)
            index.append(positions * len(rows) + place)
            targets.append(ids[np.minimum(positions + 1, len(ids) - 1)].astype(np.int64))
            sequence.append(np.full(len(positions), place, np.int64))
        reference_logps = None
        if self.reference_logps is not None:
            values = [float(self.reference_logps[row]) if row >= 0 else 0.0 for row in rows]
            reference_logps = torch.tensor(values, dtype=torch.float32, device=device)
        return MicroBatch(
            *(torch.from_numpy(a).to(device) for a in (tokens, *map(np.concatenate, (index, targets, sequence)))),
            real=torch.tensor([row >= 0 for row in rows], device=device),
            reference_logps=reference_logps,
        )
