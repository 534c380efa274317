"""YAML reading: numbers, doubled keys, anchors, merging, and where each value came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.located_yaml import ConfigError, Document, merge, read


def _file(tmp_path: Path, text: str, name: str = "a.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("2E3", 2000.0), ("1.5e-3", 1.5e-3), (".5e1", 5.0), ("3", 3)]
)
def test_numbers_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    found = read(_file(tmp_path, f"a: {text}")).data["a"]
    assert found == value and type(found) is type(value)


def test_a_word_stays_a_word(tmp_path: Path) -> None:
    assert read(_file(tmp_path, "a: e5\nb: 1e\nc: '1e-5'")).data == {"a": "e5", "b": "1e", "c": "1e-5"}


def test_doubled_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:3: b: given twice"):
        read(_file(tmp_path, "a:\n  b: 1\n  b: 2\n"))


def test_an_anchor_is_no_doubled_key(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\nc: *b\n"
    document = read(_file(tmp_path, text))
    assert document.data["b"] == document.data["c"] == {"x": 1, "y": 3}
    assert document.problem(("b", "y"), "!").endswith("a.yaml:4: b.y: !")


@pytest.mark.parametrize("text", ["", "- 1\n", "5", "a: [1"])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        read(_file(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        read(tmp_path / "none.yaml")


def test_merged_values_remember_their_files(tmp_path: Path) -> None:
    base = read(_file(tmp_path, "a:\n  x: 1\n  y: 2\n", "base.yaml"))
    over = read(_file(tmp_path, "o:\n  - a:\n      y: 3\n      z: 4\n", "over.yaml"))
    merged = merge(base, over.at("o", 0))
    assert merged.data == {"a": {"x": 1, "y": 3, "z": 4}}
    assert base.data == {"a": {"x": 1, "y": 2}}
    assert merged.problem(("a", "x"), "!").endswith("base.yaml:2: a.x: !")
    assert merged.problem(("a", "y"), "!").endswith("over.yaml:3: o[0].a.y: !")
    assert merged.problem(("a", "new"), "!").endswith("a.new: !")


def test_another_name_replaces_a_mapping(tmp_path: Path) -> None:
    base = read(_file(tmp_path, "rule: {name: blur, gamma: 1.0}\n", "base.yaml"))
    same = read(_file(tmp_path, "rule: {name: blur}\n", "same.yaml"))
    other = read(_file(tmp_path, "rule: {name: weighted-sum}\n", "other.yaml"))
    assert merge(base, same).data == base.data
    assert merge(base, other).data == {"rule": {"name": "weighted-sum"}}


def test_a_part_that_is_not_there_is_empty() -> None:
    document = read(Path(__file__).parents[3] / "workflow_configs" / "methods" / "ga.yaml")
    assert document.at("overrides", "training").data == {}
    assert isinstance(document.at("training"), Document)
