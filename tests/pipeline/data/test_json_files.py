"""JSON files between steps: what is wrong in one is said with file, line, key and value."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from pipeline.data.errors import DataError
from pipeline.data.json_files import Record, agree, read_object, read_rows


class Ship(Record):
    version: Literal[3] = Field(3, alias="schema")
    name: str
    crew: dict[str, int | float | None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ship.json"


def test_a_record_comes_back_as_it_was_and_whole_numbers_stay_whole(path: Path) -> None:
    ship = Ship(name="Ane", crew={"cooks": 1, "hours": 1.0, "guests": None})
    ship.write(path)
    assert Ship.read(path) == ship
    one_line = " ".join(path.read_text().split())
    assert one_line == '{ "schema": 3, "name": "Ane", "crew": { "cooks": 1, "hours": 1.0, "guests": null } }'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 2, "name": "Ane", "crew": {}}', r"schema: .*3.*, got 2$"),
        ('{"schema": 3, "crew": {}}', r"name: .*required$"),
        ('{"schema": 3, "name": "Ane", "crew": {"cooks": "1"}}', r"crew\.cooks.*: .*, got '1'$"),
        ('{"schema": 3, "name": "Ane", "crew": {}, "flag": "red"}', r"flag: .*, got 'red'$"),
        ("[1]", r"expected an object, got \[1\]$"),
        ("{", r"not JSON"),
        (None, r"cannot be read"),
    ],
)
def test_what_is_no_such_record_is_named(path: Path, text: str | None, message: str) -> None:
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"^{path}: {message}"):
        Ship.read(path)


def test_a_number_that_is_not_finite_is_not_written(path: Path) -> None:
    with pytest.raises(ValueError, match="crew"):
        Ship(name="Ane", crew={"hours": float("nan")})
    assert not path.exists()


def test_rows_are_read_whatever_their_texts_hold(path: Path) -> None:
    path.write_text('{"text": "one\u2028line"}\n{"text": "two"}\n', encoding="utf-8")
    assert read_rows(path) == [{"text": "one\u2028line"}, {"text": "two"}]
    path.write_text("")
    assert read_rows(path) == []


@pytest.mark.parametrize("line", ["", "[1]", "{"])
def test_a_broken_line_is_named(path: Path, line: str) -> None:
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(DataError, match=rf"^{path}, line 2: "):
        read_rows(path)


def test_values_that_differ_are_named_with_both(path: Path) -> None:
    ship = Ship(name="Ane", crew={"cooks": 1})
    agree(path, ship, {"name": "Ane", "crew.cooks": 1}, "one crew")
    with pytest.raises(DataError, match=rf"^{path}: crew\.cooks is 1, expected 2: another crew"):
        agree(path, ship, {"crew.cooks": 2}, "another crew")
    with pytest.raises(DataError, match=r"crew\.mates is None, expected 2"):
        agree(path, {"crew": {}}, {"crew.mates": 2}, "another crew")
    with pytest.raises(DataError, match=r"crew\.mates\.first is None"):
        agree(path, {"crew": {"mates": 3}}, {"crew.mates.first": 2}, "another crew")


def test_an_object_is_read(path: Path) -> None:
    path.write_text('{"a": {"b": 1}}')
    assert read_object(path) == {"a": {"b": 1}}
