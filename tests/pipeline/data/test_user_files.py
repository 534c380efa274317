"""Files as people have them: each kind is read as what it says, or refused with file, line or row, and reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import user_files
from pipeline.data.errors import DataError

ROWS = [{"question": "Wer?", "answer": "Zoë, „die“.\u2028Ja."}, {"question": "Wo?", "answer": "Hier."}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = 'question;answer\nWer?;"Zoë, „die“.\u2028Ja."\nWo?;Hier.\n'
KEYS = ("question", "answer")


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path, **options: Any) -> list[Any]:
    return [value for _, value in user_files.read(path, KEYS, **options)]


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        values(path, **options)
    message = str(error.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_same_rows_in_every_encoding(tmp_path: Path, name: str, encoding: str, ends: str) -> None:
    """A line separator inside a value ends no line; a byte order mark is no part of the first key."""
    text = {"a.jsonl": LINES, "a.json": json.dumps(ROWS, ensure_ascii=False, indent=1), "a.csv": TABLE}[name]
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    path = write(tmp_path, name, mark + text.replace("\n", ends).encode(encoding))
    assert values(path) == ROWS
    assert user_files.count(path) == 2


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert user_files.read(path) == [(f"{path}, row {i}", row) for i, row in enumerate(ROWS)]
    assert "not a Parquet file" in refused(write(tmp_path, "b.parquet", path.read_bytes()[:40]))
    damaged = path.read_bytes()[:-60] + b"\xff" * 52 + path.read_bytes()[-8:]
    assert "not a Parquet file that can be read (OSError: " in refused(write(tmp_path, "c.parquet", damaged))


def test_of_a_parquet_file_the_columns_that_are_wanted_are_read(tmp_path: Path) -> None:
    """Only this has columns beside: one with a date that Python has not, and one name twice."""
    import pyarrow
    from pyarrow import parquet

    path, texts = tmp_path / "a.parquet", pyarrow.array(["a", "b"])
    dates = pyarrow.array([2**62, 0], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table([texts, dates], names=["text", "when"]), path)
    assert [value for _, value in user_files.read(path, ["text"])] == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file that can be read \(OverflowError: "):
        user_files.read(path)
    with pytest.raises(DataError, match=r"a\.parquet: column 'answer' is missing; the file has text, when"):
        user_files.read(path, ["text", "answer"])
    parquet.write_table(pyarrow.table([texts, texts], names=["text", "text"]), path)
    with pytest.raises(DataError, match=r"a\.parquet: the column 'text' is there twice"):
        user_files.read(path, ["text"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(LINES.encode(), mtime=0), ": is compressed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ": is a Git LFS pointer"),
        (b"PK\x03\x04xl/workbook", ": is a zip archive, as spreadsheets"),
        (b"%PDF-1.7", ": is a PDF"),
        (LINES.encode("utf-32"), ": is UTF-32"),
        (LINES.encode("latin-1", "replace"), ", line 1: byte 0xeb is not UTF-8"),
        (b'{"question": "a"}\n\n{"question": "\xff"}\n', ", line 3: byte 0xff is not UTF-8"),
        ('{"question": "a"}'.encode("utf-16-le"), ", line 1: a zero byte"),
        (b"\xff\xfe" + '{"a": 1}\n'.encode("utf-16-le") + b"\x00\xd8\x00", ", line 2: not UTF-16"),
        (b'{"question": "a"}\n{"question": \n', ", line 2: not a JSON object on one line"),
        (b'{"question": "a", "question": "b"}', ", line 1: the key 'question' is there twice"),
        (b"[" * 100_000, ": nested too deeply"),
    ],
)
def test_what_is_refused_says_what_it_is(tmp_path: Path, content: bytes, expected: str) -> None:
    path = write(tmp_path, "a.jsonl", content)
    assert refused(path).startswith(expected)
    assert user_files.count(path) is None


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "nowhere.jsonl")


def test_places_are_lines_or_rows(tmp_path: Path) -> None:
    """Blank lines are skipped and counted as lines, and a CSV record begins at its first line."""
    path = write(tmp_path, "a.jsonl", '\n{"a": 1}\n  \n{"a": 2}')
    assert [place for place, _ in user_files.read(path)] == [f"{path}, line {n}" for n in (2, 4)]
    path = write(tmp_path, "a.csv", 'question,answer\na,"b\nc"\n\nd,e\n')
    assert user_files.read(path, KEYS) == [
        (f"{path}, line 2", {"question": "a", "answer": "b\nc"}),
        (f"{path}, line 5", {"question": "d", "answer": "e"}),
    ]


@pytest.mark.parametrize("delimiter", user_files.DELIMITERS)
def test_the_delimiter_is_the_one_under_which_the_columns_are_there(tmp_path: Path, delimiter: str) -> None:
    """Other delimiters inside of values do not mislead; quotes are doubled inside of quotes."""
    others = "".join(user_files.DELIMITERS)
    text = (
        delimiter.join(["id", "question", "answer"]) + "\n" + delimiter.join(["1", f'"{others}"', '"say ""a"""']) + "\n"
    )
    assert values(write(tmp_path, "a.csv", text)) == [{"id": "1", "question": others, "answer": 'say "a"'}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("question,reply\na,b\n", ", line 1: column 'answer' is missing; the first line has question, reply"),
        ("", ", line 1: column 'question' is missing; the first line has nothing"),
        ("question,answer\na\n", ", line 2: 1 values, but the first line has 2 columns"),
        ("question,answer\na,b\nc,d,e\n", ", line 3: 3 values"),
        ('question,answer\na,"b\n', ", line 2: not CSV"),
        ('question,answer\na,"b"c\n', ", line 2: not CSV"),
        ("question,answer,answer\na,b,c\n", ", line 1: the column 'answer' is there twice"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert refused(write(tmp_path, "a.csv", text)).startswith(expected)


def test_a_huge_value(tmp_path: Path) -> None:
    """Python's csv stops at 131072 characters by itself."""
    text = "x" * 200_000
    assert values(write(tmp_path, "a.csv", f"question,answer\na,{text}\n"))[0]["answer"] == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He was \ud83d there.", r"\\ud83d, at character 7"),
        ("a\0", "zero character, at character 1"),
    ],
)
def test_texts_that_nothing_can_write(text: str, expected: str) -> None:
    fault = user_files.fault(text)
    assert fault is not None and expected.replace("\\\\", "\\") in fault
    assert user_files.fault("\x07\x0b \U0001f600\ufeff") is None
