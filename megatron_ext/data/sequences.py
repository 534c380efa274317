"""Tokenised sequences on disk and in memory: what data preparation writes and every step reads."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from megatron_ext.atomic_files import replacing_file

_PART = 0x70617274  # keeps draws of a part apart from those of batches


@dataclass(frozen=True)
class Sequences:
    """``n`` token sequences, each a prompt followed by labelled tokens.

    Attributes:
        ids: int32 ``[total]``, all sequences end to end.
        offsets: int64 ``[n + 1]``; sequence ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
        prompt_lengths: int32 ``[n]``, at least 1. Tokens from that position on are labelled, each predicted from the
            tokens before it.
    """

    ids: np.ndarray
    offsets: np.ndarray
    prompt_lengths: np.ndarray

    @classmethod
    def pack(cls, rows: Iterable[tuple[list[int], int]]) -> Sequences:
        """Sequences of lists of token ids.

        Args:
            rows: Token ids and prompt length of each sequence.

        Returns:
            The sequences, in the same order.

        Raises:
            ValueError: Naming the row, for one without a prompt or without a label.
        """
        rows = list(rows)
        for i, (ids, prompt) in enumerate(rows):
            if not 1 <= prompt < len(ids):
                raise ValueError(
                    f"row {i}: {len(ids)} tokens with a prompt of {prompt}: nothing to predict, or no prompt"
                )
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(ids) for ids, _ in rows], out=offsets[1:])
        flat = np.fromiter((t for ids, _ in rows for t in ids), np.int32, int(offsets[-1]))
        return cls(flat, offsets, np.array([p for _, p in rows], np.int32))

    @classmethod
    def part(cls, whole: Sequences, share: float, seed: int) -> Sequences:
        """A share of the sequences, to the nearest whole number and at least one, in their order.

        A seed's shares are nested: all that a smaller one has, a larger one has too.
        """
        count = max(1, round(share * len(whole)))
        order = np.random.default_rng([seed, _PART]).permutation(len(whole))
        rows = (whole.row(int(i)) for i in np.sort(order[:count]))
        return cls.pack((ids.tolist(), prompt) for ids, prompt in rows)

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def row(self, index: int) -> tuple[np.ndarray, int]:
        """Token ids (int32) and prompt length of one sequence."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]], int(self.prompt_lengths[index])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, prompt included: int64 ``[n]``."""
        return np.diff(self.offsets)

    @property
    def label_counts(self) -> np.ndarray:
        """Labelled tokens of each sequence: int64 ``[n]``."""
        return self.lengths - self.prompt_lengths

    def check(self, what: str, vocabulary: int, context: int) -> None:
        """Check that a model can read every sequence.

        Args:
            what: What an error calls the sequences.
            vocabulary: The model's vocabulary size.
            context: Its longest sequence.

        Raises:
            ValueError: Naming ``what`` and the row, for an id or a length that the model cannot read.
        """
        for row in np.flatnonzero(self.lengths > context)[:1]:
            raise ValueError(f"{what}, row {row}: {self.lengths[row]} tokens, the model's context is {context}")
        for place in np.flatnonzero((self.ids < 0) | (self.ids >= vocabulary))[:1]:
            row = int(np.searchsorted(self.offsets, place, side="right")) - 1
            raise ValueError(f"{what}, row {row}: token id {self.ids[place]}, the model's vocabulary is {vocabulary}")

    def sha256(self) -> str:
        """A digest of all ids, offsets and prompt lengths."""
        digest = hashlib.sha256()
        for array in (self.ids, self.offsets, self.prompt_lengths):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write atomically as an uncompressed ``.npz`` (equal content gives equal bytes)."""
        save_arrays(path, ids=self.ids, offsets=self.offsets, prompt_lengths=self.prompt_lengths)

    @classmethod
    def load(cls, path: Path) -> Sequences:
        """Read what ``save`` wrote.

        Raises:
            ValueError: The file holds something else: its name, and what is wrong.
        """
        found = cls(**load_arrays(path, tuple(cls.__dataclass_fields__)))
        fault = found._fault()
        if fault:
            raise ValueError(f"{path}: {fault}")
        return found

    def _fault(self) -> str | None:
        """What keeps the arrays from being sequences."""
        for name in type(self).__dataclass_fields__:
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype.kind != "i":
                return f"{name}: {array.dtype}, of {array.ndim} dimensions; allowed: whole numbers in a row"
        if len(self.offsets) != len(self) + 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.ids):
            return f"offsets: {len(self.offsets)} numbers do not divide {len(self.ids)} ids into {len(self)} sequences"
        for row in np.flatnonzero(self.lengths < 0)[:1]:
            return f"offsets, row {row}: {self.offsets[row + 1]} comes after {self.offsets[row]}"
        for row in np.flatnonzero((self.prompt_lengths < 1) | (self.label_counts < 1))[:1]:
            return f"prompt_lengths, row {row}: {self.prompt_lengths[row]} of {self.lengths[row]} tokens"
        return None


def load_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file by name; nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, is cut off, or lacks an array: its name, and what is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            found = {name: file[name] for name in names if name not in missing}
    # Of a text, an empty or cut file, and an array that is no archive.
    except (ValueError, EOFError, BadZipFile, TypeError, zlib.error) as error:
        raise ValueError(f"{path}: no .npz file, or not all of it ({type(error).__name__})") from None
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    return found


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` under a temporary name, then rename it to ``path``."""
    with replacing_file(Path(path)) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type] # numpy's types take any name for its one option
