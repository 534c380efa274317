"""The record of an evaluation, ``evaluation.json``: the one place that says what it holds.

A folder with this file is a complete evaluation. Beside it lies ``examples.jsonl``, the raw results from which the
record's metrics were computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from megatron_ext.schema import Strict
from pipeline.data.cache import sha256
from pipeline.data.errors import DataError
from pipeline.data.json_files import Record, Row, read_rows, short

EVALUATION = "evaluation.json"
EXAMPLES = "examples.jsonl"
NOT_STATED = "not stated"  # as other tools' logs do not


class Settings(Strict):
    """What decided the metrics beside the model.

    Attributes:
        options: settings of the benchmark family, its name under ``family``
        decoding: how answers were generated
        precision: number format of the model, ``fp32`` or ``bf16``; ``NOT_STATED`` where another tool evaluated
        examples: number of examples by evaluated set
        data_sha256: SHA-256 of each evaluated set's file in the prepared folder; empty where none is
            prepared, and where another tool evaluated
    """

    options: dict[str, Any]
    decoding: str
    precision: str
    examples: dict[str, int]
    data_sha256: dict[str, str]


class Provenance(Strict):
    """Where the evaluation came from: folders as they were given, and the SHA-256 of ``examples.jsonl``."""

    checkpoint: str
    data: str
    retain_evaluation: str | None
    examples_sha256: str


class EvaluationRecord(Record):
    """What ``evaluation.json`` holds; ``metrics`` maps a metric's key to its value, or to null where it has none."""

    version: Literal[2] = Field(2, alias="schema")
    model: str
    benchmark: str
    split: str
    seed: int | None
    metrics: Mapping[str, int | Annotated[float, Field(allow_inf_nan=True)] | None]
    settings: Settings
    provenance: Provenance

    @property
    def is_foreign(self) -> bool:
        """Whether another tool evaluated: which data it read is not known by their digests."""
        return self.settings.precision == NOT_STATED


def verified_examples(folder: Path, record: EvaluationRecord) -> list[Row]:
    """The examples that lie in ``folder`` beside ``record``.

    Raises:
        DataError: the file is missing, is not the one that the metrics were computed from, or has a broken line
    """
    path = folder / EXAMPLES
    try:
        digest = sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if digest != record.provenance.examples_sha256:
        raise DataError(f"{path}: not the examples that {folder / EVALUATION} was computed from")
    return read_rows(path)


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` holds a record and the examples that it was computed from."""
    try:
        return sha256(folder / EXAMPLES) == EvaluationRecord.read(folder / EVALUATION).provenance.examples_sha256
    except (OSError, DataError):
        return False


def check_rows(examples: list[Row], data: Path, path: Path) -> None:
    """Check that another tool's examples are of the rows that a model is evaluated on here.

    Its logs have no digests of the data. They have the true answers, but for white space that decoding leaves out, and
    some with the prompt before them.

    Args:
        examples: those of a log
        data: folder that the prepare step wrote
        path: what to call the log in messages

    Raises:
        DataError: other rows, or none at all
    """
    if not examples:
        raise DataError(f"{path}: a summary has no examples, with which a model could be compared")
    for name in dict.fromkeys(example["set"] for example in examples):
        key = "gt" if name == "verbmem" else "answer"
        rows = read_rows(data / "evaluation" / f"{name}.jsonl")
        own = [example for example in examples if example["set"] == name]
        if len(rows) != len(own):
            raise DataError(f"{path}: {len(own)} examples of set {name!r}, but the data have {len(rows)} rows")
        answers = {row["index"]: row[key] for row in rows}
        for example in own:
            text = example.get(key)
            wanted = answers.get(example["index"])
            if wanted is None or (text is not None and not _squeezed(text).endswith(_squeezed(wanted))):
                raise DataError(
                    f"{path}: set {name!r}, example {example['index']}: true answer {short(text)}, in the data "
                    f"{short(wanted)}"
                )


def _squeezed(text: str) -> str:
    """A text without white space, of which decoding leaves out some."""
    return "".join(text.split())
