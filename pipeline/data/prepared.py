"""What a data family says: which files and splits a benchmark has, and what becomes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from megatron_ext.atomic_files import write_text
from pipeline.data.errors import DataError
from pipeline.data.settings import BadRows, GeneratedSource, RequestOrder

if TYPE_CHECKING:
    from megatron_ext.data.sequences import Sequences
    from pipeline.data.templates import Template
    from pipeline.data.tokenise import Encoder

# The names that a file may have below a source's folder, without their suffix; the first that is there is read.
Names = tuple[str, ...]
# Where in a source's settings something is.
UserKey = tuple[str, ...]


class Content(Protocol):
    """Everything that was read or made for one forget split.

    Attributes:
        source: where it came from, for the manifest
        origins: under ``train`` and ``evaluation`` by set where its rows came from, for messages and the manifest
    """

    source: Mapping[str, Any]
    origins: Mapping[str, Mapping[str, str]]

    def digest(self) -> Any:
        """A JSON value that is the same for equal content, wherever it came from."""

    def texts(self, template: Template) -> Iterator[str]:
        """What a tokenizer made for this data is trained on: the training sets' text, each once."""

    def encode(self, encoder: Encoder, tables: PreparedWriter) -> None:
        """Write every set; raises ``DataError`` that names file and row of what cannot be used."""

    def flags(self) -> list[str]:
        """What a user should know of the data, a sentence each."""


@dataclass(frozen=True)
class SetsOfText:
    """The part of ``Content`` that families of plain text share.

    Attributes:
        source: where the texts came from, for the manifest
        training: training sets by name; each has ``origin`` and ``content``, a JSON value that is the same for equal
            texts
        evaluation: by set its rows, and where they came from
    """

    source: dict[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, tuple[list[dict[str, Any]], str]] = field(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, Mapping[str, str]]:
        return {
            "train": {name: part.origin for name, part in self.training.items()},
            "evaluation": {name: origin for name, (_, origin) in self.evaluation.items()},
        }

    def digest(self) -> dict[str, dict[str, str]]:
        return {
            "train": {name: digest(part.content) for name, part in self.training.items()},
            "evaluation": {name: digest(rows) for name, (rows, _) in self.evaluation.items()},
        }


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()


class DataFamily(Protocol):
    """The data side of a benchmark family; ``pipeline.benchmarks.tofu.data`` is one.

    Attributes:
        kinds: kinds of sources that it reads
        generators: settings of its own generators, whose kinds are among ``kinds``
    """

    kinds: tuple[str, ...]
    generators: tuple[type[GeneratedSource], ...]

    def splits(self, source: Any) -> tuple[str, ...]:
        """Names of the forget splits that there are."""

    def forgotten(self, source: Any, split: str) -> frozenset[str]:
        """The training sets that hold what is to be forgotten; neither base nor retrain is trained on them."""

    def files(self, split: str, sets: Sequence[str], training: bool) -> list[Names]:
        """The files of a hub repository or a folder that are read for a forget split.

        These are the files of the evaluation ``sets``, and with ``training`` those of the training sets.
        """

    def training_sets(self, source: Any) -> list[str]:
        """The tokenised sets that a model may be trained on."""

    def tokenised_sets(self, source: Any) -> list[str]:
        """All tokenised sets, ``train/<name>.npz``: those for training, then what some methods need besides."""

    def topics(self, split: str) -> dict[str, tuple[str, str]]:
        """By topic its forget and its retain set, of the tokenised sets. Optimizer steps take the topics in turn."""

    def rows(self, source: Any, split: str) -> int | None:
        """The number of rows of the tokenised forget set, or ``None`` where only a tokenizer can tell."""

    def all_rows(self, source: Any, split: str, forget_rows: int) -> int:
        """Rows of forget and retain set together, about: for estimates of time."""

    def load(self, source: Any, split: str, sets: Sequence[str], training: bool) -> Content:
        """Read or make everything for a forget split.

        Raises:
            DataError: the split is unknown, a file is missing or not what was fetched, or a row is unreadable
        """


@runtime_checkable
class HasRequests(Protocol):
    """A data family with several requests to forget."""

    def requests(self, source: Any, split: str, order: RequestOrder) -> tuple[str, ...]:
        """The forget splits of several requests, of which the first is an experiment's own, ``split`` where it can be.

        ``sustainability``: each is forgotten by the model that has forgotten those before it. ``scalability``: they
        grow, and each is forgotten by itself.
        """

    def kept_by(self, split: str, requests: Sequence[str]) -> str:
        """The split whose retain set is kept where the further ``requests`` follow: the one that retrain is of."""

    def stated_rows(self, request: str, splits: Mapping[str, int]) -> int | None:
        """Rows of a request, by the rows that a benchmark file states of its ``splits``; ``None`` where it does not."""

    def request_options(self, requests: Sequence[str]) -> dict[str, Any]:
        """Options of the family that have the forget sets of further ``requests`` measured too."""

    def files(self, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()) -> list[Names]:
        """As ``DataFamily.files``, where the forget sets of ``requests`` are read too."""

    def load(
        self, source: Any, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()
    ) -> Content:
        """As ``DataFamily.load``, with the forget sets of ``requests`` as training sets of those names."""


@runtime_checkable
class ReadsUserFiles(Protocol):
    """A data family whose files a user names one by one, and which says what they hold."""

    def problems(self, source: Any, split: str, bad_rows: BadRows) -> list[tuple[UserKey, str]]:
        """What is wrong with the files of a split: keys of the source, and messages that name file and row."""

    def source_files(self, source: Any, split: str) -> list[Path]:
        """The files that are read for a split."""

    def estimated_rows(self, source: Any, split: str, max_length: int) -> int:
        """As ``rows``, about, where only a tokenizer can tell."""

    def implied_options(self, source: Any, split: str, retrain: bool, requests: Sequence[str] = ()) -> dict[str, Any]:
        """Options of the family that follow from the files.

        They depend on whether there is a ``retrain`` model, and on the splits that are forgotten later, ``requests``.
        """


@dataclass
class PreparedWriter:
    """Writes the files of a prepared folder.

    Attributes:
        folder: the folder
        sets: the evaluation sets that are wanted
        training: whether training sets are wanted
        entries: what the manifest says of the files that have been written, under ``train`` and ``evaluation``
    """

    folder: Path
    sets: Sequence[str]
    training: bool
    entries: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"train": {}, "evaluation": {}})

    def train(self, name: str, sequences: Sequences, origin: str, dropped: int = 0) -> None:
        """Write ``train/<name>.npz``; raises ``DataError`` for an empty set."""
        if not len(sequences):
            raise DataError(f"{origin}: none of its {dropped} rows is left for training")
        file = self.folder / "train" / f"{name}.npz"
        sequences.save(file)
        lengths = sequences.lengths
        entry = _entry(file, len(sequences), dropped, int(lengths.sum()), int(lengths.max()))
        self.entries["train"][name] = entry

    def evaluation(
        self, name: str, records: Sequence[Mapping[str, Any]], lengths: Sequence[int], origin: str, dropped: int = 0
    ) -> None:
        """Write ``evaluation/<name>.jsonl``, one record on each line.

        Args:
            name: name of the set
            records: the records
            lengths: tokens of each sequence that will be scored or continued
            origin: where the records came from, for messages
            dropped: how many rows were left out

        Raises:
            DataError: the set is empty
        """
        if not records:
            raise DataError(f"{origin}: none of its {dropped} rows is left for evaluation")
        file = self.folder / "evaluation" / f"{name}.jsonl"
        write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        self.entries["evaluation"][name] = _entry(file, len(records), dropped, sum(lengths), max(lengths, default=0))


def _entry(file: Path, rows: int, dropped: int, tokens: int, longest: int) -> dict[str, Any]:
    """``tokens`` counts prompts and targets, each as often as it is read."""
    from pipeline.data.cache import sha256

    return {"rows": rows, "dropped": dropped, "tokens": tokens, "longest": longest, "sha256": sha256(file)}
