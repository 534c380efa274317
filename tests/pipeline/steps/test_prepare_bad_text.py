"""A row whose text no UTF-8 has is named, or dropped and counted, whatever the family: only this has all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.tofu.data import DATA as TOFU
from pipeline.data.errors import DataError
from pipeline.data.settings import FilesSource, FolderSource
from pipeline.specs import PrepareSpec
from pipeline.steps.prepare import prepare

BAD = '"He was \\ud83d there."'  # an ASCII escape of half of a character
TEXTS = ['"A first text to learn."', BAD, '"Another text, which stays."']
ROWS = [f'{{"question": "Who?", "answer": {text}}}' for text in TEXTS]
SCORED = ['{"question": "Who?", "answer": "Ada.", "perturbed_answer": ["Bo."]}']
TOFU_FILES = [name for (name,) in TOFU.files("forget10", (), training=True)]
# By family its files, of which the first has the bad text, its split, and the training set and place of that text.
FAMILIES: dict[str, tuple[dict[str, list[str]], str, str, str]] = {
    "tofu": (
        {"forget10": ROWS}
        | {name: SCORED if "perturbed" in name else ROWS[:1] for name in TOFU_FILES if name != "forget10"},
        "forget10",
        "forget",
        "row 1, answer",
    ),
    "muse": ({"raw/forget": TEXTS, "raw/retain": TEXTS[:1]}, "forget", "forget", "line 2"),
    "lm_eval": ({"own-forget-corpus": TEXTS, "own-retain-corpus": TEXTS[:1]}, "own", "forget", "text 1"),
    "custom": ({"a": ROWS, "b": ROWS[:1]}, "one", "forget", "line 2"),
}


def spec(folder: Path, family: str, **changes: Any) -> PrepareSpec:
    files, split, _, _ = FAMILIES[family]
    for name, lines in files.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
    source: Any = FolderSource(path=folder)
    if family == "custom":
        sets = {name: str(folder / f"{name}.jsonl") for name in files}
        source = FilesSource.model_validate({"sets": sets, "splits": {"one": {"forget": "a", "retain": "b"}}})
    told = {"family": family, "forget_split": split, "sets": [], "source": source.model_dump(mode="json")}
    told |= {"tokenizer": {"kind": "bpe", "vocab_size": 300}, "max_length": 64, "output": str(folder / "out")}
    return PrepareSpec.model_validate(told | changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_a_character(tmp_path: Path, family: str) -> None:
    files, _, name, place = FAMILIES[family]
    with pytest.raises(DataError, match=r"half of a character, \\ud83d, at character 7") as error:
        prepare(spec(tmp_path, family))
    bad = tmp_path / f"{next(iter(files))}.jsonl"
    assert str(bad) in str(error.value) and f", {place}: " in str(error.value)
    prepare(spec(tmp_path, family, bad_rows="drop"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["train"][name]["dropped"] == 1
    assert manifest["train"]["retain"]["dropped"] == 0
