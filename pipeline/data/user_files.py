"""The one reader of the files that users hand over: rows of JSON Lines, JSON, CSV and Parquet, and plain text.

Planning counts and checks with it, and steps read with it, so that both see the same rows. Text is UTF-8, with or
without a byte order mark, or UTF-16 with one. Everything else is refused with file, line or row, and the reason.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.errors import DataError, unread

# A value of a file, after what to call it in a message: a line from 1, or in files without lines a row from 0.
Value = tuple[str, Any]

DELIMITERS = (",", ";", "\t", "|")
_PARQUET = b"PAR1"
# How files begin that hold no rows: what they are, and what to do.
_OTHERS = (
    (b"\x1f\x8b", "is compressed by gzip: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: decompress it first"),
    (b"BZh", "is compressed by bzip2: decompress it first"),
    (b"\xfd7zXZ\x00", "is compressed by xz: decompress it first"),
    (b"PK\x03\x04", "is a zip archive, as spreadsheets and office documents are: export it as CSV or text"),
    (b"\xd0\xcf\x11\xe0", "is an old office document: export it as CSV or text"),
    (b"%PDF-", "is a PDF: extract its text first"),
    (b"ARROW1", "is an Arrow file: save it as Parquet"),
    (b"SQLite format 3", "is an SQLite database: export it as CSV"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'"),
    (codecs.BOM_UTF32_LE, "is UTF-32 text: save it as UTF-8"),
    (codecs.BOM_UTF32_BE, "is UTF-32 text: save it as UTF-8"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def read(path: Path, columns: Sequence[str] = (), delimiter: str | None = None) -> list[Value]:
    """All values of a file, of the kind that its content and its name say.

    Args:
        path: the file
        columns: columns that a CSV or Parquet file must have; a CSV file's delimiter is found by them
        delimiter: the delimiter of a CSV file; ``None``: the one under which the first line has all ``columns``

    Raises:
        DataError: the file cannot be read; the message names it, the line or row, and why
    """
    return list(values(content_of(path), path, columns, delimiter))


def count(path: Path) -> int | None:
    """The number of values of a file; ``None`` where it cannot be read, which reading it for its values explains."""
    try:
        return sum(1 for _ in values(content_of(path), path))
    except DataError:
        return None


def other_kind(path: Path) -> str | None:
    """What a file is that holds neither rows nor text, and what to do; ``None`` where its first bytes do not tell."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return _other_kind(stream.read(64))


def _other_kind(content: bytes) -> str | None:
    return next((what for start, what in _OTHERS if content.startswith(start)), None)


def content_of(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read, or is a pipe or a device, which may never end
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode) and not Path(path).is_dir():
            raise DataError(f"{path}: cannot be read: a pipe or a device, not a file")
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {unread(Path(path), error)}") from None


def values(content: bytes, path: Path, columns: Sequence[str] = (), delimiter: str | None = None) -> Iterator[Value]:
    """As ``read``, of a file's content."""
    if content.startswith(_PARQUET):
        yield from _parquet(content, path, columns)
        return
    text = decode(content, path)
    if Path(path).suffix.lower() in (".csv", ".tsv"):
        tab = "\t" if Path(path).suffix.lower() == ".tsv" else None
        yield from _csv(text, path, columns, delimiter or tab)
    elif text.lstrip()[:1] == "[":
        yield from _json_list(text, path)
    else:
        yield from _json_lines(text, path)


def decode(content: bytes, path: Path) -> str:
    """The text of a file's bytes, without a byte order mark.

    Raises:
        DataError: the bytes are no UTF-8 and have no mark of UTF-16, or are those of another kind of file
    """
    what = _other_kind(content)
    if what:
        raise DataError(f"{path}: {what}")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            line = content[: error.start].decode("utf-16", "ignore").count("\n") + 1
            raise DataError(f"{path}, line {line}: not UTF-16 text, as its byte order mark says it is") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8 text: save the file as UTF-8"
        ) from None
    place = text.find("\0")
    if place >= 0:
        line = text.count("\n", 0, place) + 1
        message = "a zero byte: a binary file, or UTF-16 without a byte order mark; save the file as UTF-8"
        raise DataError(f"{path}, line {line}: {message}")
    return text


def fault(text: str) -> str | None:
    """Why a text that a row holds is none that can be written; ``None`` for a good one.

    JSON can say half of a character, a lone surrogate (``"\\ud83d"``), which no UTF-8 has, and a zero character.
    """
    found = _SURROGATE.search(text)
    if found:
        return (
            f"the text holds half of a character, \\u{ord(found[0]):04x}, at character {found.start()}: no UTF-8 text"
        )
    return f"the text holds a zero character, at character {text.index(chr(0))}" if "\0" in text else None


def _json_lines(text: str, path: Path) -> Iterator[Value]:
    """A value on each line; blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _json(line, place, "not a JSON object on one line")


def _json_list(text: str, path: Path) -> Iterator[Value]:
    for row, value in enumerate(_json(text, str(path), "not a JSON list")):
        yield f"{path}, row {row}", value


def _json(text: str, place: str, what: str) -> Any:
    def entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise DataError(f"{place}: the key {max(names, key=names.count)!r} is there twice in one object")
        return found

    try:
        return json.loads(text, object_pairs_hook=entries)
    except RecursionError:
        raise DataError(f"{place}: nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{place}: {what} ({error})") from None


def _csv(text: str, path: Path, columns: Sequence[str], delimiter: str | None) -> Iterator[Value]:
    """A mapping of texts by column for each record; quoted values may hold delimiters, quotes and line ends."""
    csv.field_size_limit(sys.maxsize)
    names, chosen = _header(text, path, columns, delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=chosen, strict=True)
    line = 1
    try:
        for number, record in enumerate(reader):
            place, line = f"{path}, line {line}", reader.line_num + 1
            if number == 0 or not any(cell.strip() for cell in record):
                continue
            if len(record) != len(names):
                message = f"{len(record)} values, but the first line has {len(names)} columns"
                raise DataError(f"{place}: {message}; a value that holds {chosen!r} needs double quotes")
            yield place, dict(zip(names, record, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not CSV ({error})") from None


def _header(text: str, path: Path, columns: Sequence[str], delimiter: str | None) -> tuple[list[str], str]:
    """The names of a CSV file's columns, and its delimiter."""
    found: dict[str, list[str]] = {}
    for each in [delimiter] if delimiter else DELIMITERS:
        try:
            found[each] = [name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=each), [])]
        except csv.Error as error:
            raise DataError(f"{path}, line 1: not CSV ({error})") from None
    fitting = [each for each, names in found.items() if set(columns) <= set(names)]
    chosen = max(fitting or found, key=lambda each: len(found[each]))
    names = found[chosen]
    _named_once(names, columns, f"{path}, line 1", "the first line has")
    return names, chosen


def _parquet(content: bytes, path: Path, columns: Sequence[str]) -> Iterator[Value]:
    """The rows of a Parquet file; of ``columns`` only these, as no other column's values are wanted."""
    try:
        from pyarrow import parquet
    except ImportError:
        message = "a Parquet file, which needs the package 'pyarrow' here: install it, or save the file as JSONL"
        raise DataError(f"{path}: {message}") from None
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        names = file.schema_arrow.names
        _named_once(names, columns, str(path), "the file has")
        rows = file.read(list(columns) or None).to_pylist()
    except DataError:
        raise
    # Beside its own classes: OSError of a damaged footer, OverflowError of a date, KeyError of a time zone.
    except Exception as error:
        what = (str(error).strip().splitlines() or [""])[0]
        raise DataError(f"{path}: not a Parquet file that can be read ({type(error).__name__}: {what})") from None
    for row, value in enumerate(rows):
        yield f"{path}, row {row}", value


def _named_once(names: Sequence[str], columns: Sequence[str], place: str, has: str) -> None:
    """Raise ``DataError`` where a table lacks one of the columns, or has one twice."""
    missing = [name for name in columns if name not in names]
    if missing:
        found = ", ".join(filter(None, names)) or "nothing"
        raise DataError(f"{place}: column {missing[0]!r} is missing; {has} {found}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{place}: the column {twice[0]!r} is there twice")
