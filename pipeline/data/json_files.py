"""JSON files that steps leave for one another: read with errors that name file, line, key and value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from megatron_ext.atomic_files import write_json
from megatron_ext.schema import Strict
from pipeline.data.errors import DataError

Row = dict[str, Any]


class Record(Strict):
    """A JSON file of known form: subclasses say which keys it has."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record at ``path``.

        Raises:
            DataError: the file cannot be read or is not such a record; the message names file, key and value
        """
        try:
            return cls.model_validate(read_object(path))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            given = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
            raise DataError(f"{path}: {key}: {first['msg']}{given}") from None

    def write(self, path: Path) -> None:
        """Write the record to ``path`` in one rename; raises ``ValueError`` for a number that is not finite."""
        write_json(path, self.model_dump(mode="json", by_alias=True))


def read_object(path: Path) -> Row:
    """The JSON object in a file.

    Raises:
        DataError: the file is missing or unreadable, or holds something else
    """
    text = _text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object, got {short(found)}")
    return found


def read_rows(path: Path) -> list[Row]:
    """The rows of a file with a JSON object on each line; raises ``DataError`` as ``numbered_rows`` does."""
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row of a file with a JSON object on each line, after the words that name its place in messages.

    Raises:
        DataError: the file is missing or unreadable, or a line is not an object
    """
    lines = _text(path).split("\n")
    if not lines[-1]:
        del lines[-1]
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected an object, got {short(row)}")
        yield place, row


def agree(path: Path, found: Any, wanted: Mapping[str, Any], why: str) -> None:
    """Check values of a JSON object or a model.

    Args:
        path: the file that holds it, for the message
        found: a JSON object, or a model whose fields are looked up by name
        wanted: dotted key -> the value that must be there
        why: what a difference means, for the message

    Raises:
        DataError: a value differs; the message names file, key and both values
    """
    for key, value in wanted.items():
        given = found
        for part in key.split("."):
            given = given.get(part) if isinstance(given, dict) else getattr(given, part, None)
        if given != value:
            raise DataError(f"{path}: {key} is {given!r}, expected {value!r}: {why}")


def short(value: object) -> str:
    """A JSON value as text for a message, of at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
