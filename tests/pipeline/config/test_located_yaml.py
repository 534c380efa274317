"""YAML reading: numbers, doubled keys, anchors, merging, and where each value came from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from megatron_ext import specs
from megatron_ext.schema.safe_yaml import Dumper
from pipeline.config.located_yaml import ConfigError, Document, merge, read


def _file(tmp_path: Path, text: str, name: str = "a.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-5", 1e-5), ("2E3", 2000.0), ("1.5e-3", 1.5e-3), (".5e1", 5.0), ("3", 3), ("1.", 1.0), ("+.5", 0.5)],
        *[("0100", 100), ("-007", -7), ("+08", 8), ("0o17", 15), ("0xfF", 255), ("010.5", 10.5), ("-.inf", -math.inf)],
        *[("!!int 0100", 100), ("!!float 3", 3.0), ("0", 0), ("-0.0", -0.0), ("1e5", 1e5), ("!!float 0100", 100.0)],
    ],
)
def test_numbers_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    found = read(_file(tmp_path, f"a: {text}")).data["a"]
    assert found == value and type(found) is type(value)


def test_a_word_stays_a_word(tmp_path: Path) -> None:
    assert read(_file(tmp_path, "a: e5\nb: 1e\nc: '1e-5'")).data == {"a": "e5", "b": "1e", "c": "1e-5"}


@pytest.mark.parametrize("text", ["1:30", "1:30.5", "1_000", "1_0.5", "0b11", "-0o7", "0o8", "0x", ".", "1.5.2", "08h"])
def test_what_is_no_number_in_yaml_1_2_is_a_word(tmp_path: Path, text: str) -> None:
    """YAML 1.1 has base 60, underscores and base 2."""
    assert read(_file(tmp_path, f"a: {text}")).data["a"] == text
    for kind in ("int", "float"):
        with pytest.raises(ConfigError, match=rf"a\.yaml:1: not YAML: .*is no {kind}"):
            read(_file(tmp_path, f"a: !!{kind} {text}"))


@pytest.mark.parametrize(
    "text", ["08", "0o17", "1e5", "1:30", "1_000", "0b11", "yes", "2024-01-01", "7", ".5", "a", ""]
)
def test_a_text_that_is_written_is_read_as_that_text(tmp_path: Path, text: str) -> None:
    """By both: YAML 1.1 takes the first three for texts, and YAML 1.2 the next three."""
    written = yaml.dump({"a": text}, Dumper=Dumper)
    assert read(_file(tmp_path, written)).data == yaml.safe_load(written) == {"a": text}


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


def _laughs(levels: int, width: int) -> str:
    """A file of a few bytes whose aliases stand for ``width ** levels`` values."""
    lines = ["a0: &a0 [1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)


BOMBS = {
    "aliases in lists": _laughs(9, 9),
    "merged mappings": "\n".join(
        ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9))]
    ),
    "many aliases of one": "a: &a {b: 1}\nc: [" + "*a, " * 6000 + "1]",
    "nested lists": "a: " + "[" * 900 + "]" * 900,
    "nested mappings": "a: " + "{a: " * 900 + "1" + "}" * 900,
    "nested blocks": "\n".join("  " * i + "a:" for i in range(200)),
    "unclosed lists": "a: " + "[" * 5000,
    "digits": f"a: {'9' * 5000}",
    "hexadecimal digits": f"a: 0x{'f' * 5000}",
    "sexagesimal digits": f"a: !!int {'59:' * 900}59",
    "a date that is none": "a: 2024-13-45",
    "a date of a tag": "a: !!timestamp soon",
    "a truth of a tag": "a: !!bool perhaps",
    "a number of a tag": "a: !!int ''",
    "a fraction of a tag": "a: !!float [1]",
    "bytes that are none": "a: !!binary a",
    "an object": "a: !!python/object/apply:os.system [id]",
}


@pytest.mark.parametrize(
    "text", ["a: }", "a: 1\nb: c: 2\n", "a: &b\n<<: *c\n", "{a: 1, b: [x, 1e-5]}", "a: |\n x\n\n y\n"]
)
def test_both_parsers_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """PyYAML's own, where it was built without libyaml: the same values, and the same line of a mistake."""
    path, found = _file(tmp_path, text), []
    for there in (True, False):
        monkeypatch.setattr("yaml.__with_libyaml__", there)
        try:
            document = read(path)
            found.append((document.data, document.marks))
        except ConfigError as error:
            found.append(str(error).split(": not YAML")[0])
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_would_become_much_is_refused_with_a_line(bomb: str, tmp_path: Path) -> None:
    """Only this reads what is small on disk and large or impossible in memory; in a program's specification too."""
    path = _file(tmp_path, BOMBS[bomb])
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: not YAML: ") as error:
        read(path)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    with pytest.raises(SystemExit, match=r"a\.yaml"):
        specs.read(path, specs.QuantiseSpec)


def test_what_people_write_with_aliases_is_read(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: [1, 2]}\n" + "".join(f"b{i}: {{<<: *a, z: {2**63 + i}}}\n" for i in range(300))
    assert read(_file(tmp_path, text)).data["b299"] == {"x": 1, "y": [1, 2], "z": 2**63 + 299}


def test_a_message_holds_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    """Only this has keys with control characters, which YAML allows in quotes."""
    with pytest.raises(ConfigError) as error:
        read(_file(tmp_path, '"\\e]0;x\\a": 1\n"\\e]0;x\\a": 2\n'))
    assert "\\x1b]0;x\\x07: given twice" in str(error.value) and str(error.value).isprintable()


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
