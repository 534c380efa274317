"""TOFU's holdout set: read and written only where it is asked for, and seen by nothing that is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.benchmarks.tofu.data import DATA, RETAIN_SPLITS
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.data import sources
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_rows
from pipeline.data.settings import FolderSource
from pipeline.hub import local_files
from pipeline.specs import PrepareSpec
from pipeline.steps.prepare import prepare

PLAIN = ("forget", "retain", "real_authors", "world_facts")
ALL = (*PLAIN, "holdout")
SMALL = SyntheticSource(authors=4, questions_per_author=3, background_authors=2)


def prepared(output: Path, sets: tuple[str, ...] = ALL, **changes: Any) -> Path:
    told = {"family": "tofu", "forget_split": "forget10", "sets": list(sets), "source": SMALL.model_dump()}
    told |= {"tokenizer": {"kind": "bpe", "vocab_size": 400}, "max_length": 400, "output": str(output)}
    prepare(PrepareSpec.model_validate(told | changes))
    return output


@pytest.mark.parametrize("split", RETAIN_SPLITS)
def test_its_file_is_read_only_where_it_is_asked_for(split: str) -> None:
    holdout = (split.replace("forget", "holdout"),)
    assert holdout not in DATA.files(split, PLAIN, training=True)
    assert set(DATA.files(split, ALL, training=True)) - set(DATA.files(split, PLAIN, training=True)) == {holdout}
    assert DATA.files(split, ("holdout",), training=False) == [holdout]


def test_nothing_that_is_trained_sees_it(tmp_path: Path) -> None:
    without, with_it = prepared(tmp_path / "without", PLAIN), prepared(tmp_path / "with")
    files = {path.relative_to(without) for path in without.rglob("*") if path.is_file()}
    others = {path.relative_to(with_it) for path in with_it.rglob("*") if path.is_file()}
    assert others - files == {Path("evaluation/holdout.jsonl")} and not files - others
    for file in files - {Path("manifest.json"), Path("summary.json")}:
        assert (without / file).read_bytes() == (with_it / file).read_bytes(), file
    rows = read_rows(with_it / "evaluation" / "holdout.jsonl")
    assert [row["targets"].keys() for row in rows] == [{"answer"}] * 3
    entry = json.loads((with_it / "manifest.json").read_text())["evaluation"]["holdout"]
    assert (entry["rows"], entry["origin"]) == (3, "synthetic (seed 0), holdout10")
    assert json.loads((with_it / "summary.json").read_text())["flags"] == []


@pytest.mark.slow
def test_real_holdout_sets(real_data: Path) -> None:
    for split, retain in RETAIN_SPLITS.items():
        content = DATA.load(FolderSource(path=real_data / "tofu"), split, ALL, training=True)
        holdout = content.splits.rows[split.replace("forget", "holdout")]
        assert len(holdout) == len(content.splits.rows[split])
        assert {row.answer for row in holdout}.isdisjoint(row.answer for row in content.splits.rows[retain])
        assert content.flags() == []


def test_a_holdout_question_that_is_trained_is_said(tmp_path: Path) -> None:
    pair = {"question": "Who?", "answer": "Ada."}
    scored = {**pair, "paraphrased_answer": "It was Ada.", "perturbed_answer": ["It was Bo."]}
    for (name,) in DATA.files("forget05", ALL, training=True):
        row = {**(scored if name.endswith("_perturbed") else pair), "question": f"{name}?"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    source = FolderSource(path=tmp_path)
    assert DATA.load(source, "forget05", ALL, training=True).flags() == []
    (tmp_path / "holdout05.jsonl").write_text(json.dumps({"question": " FULL?", "answer": "Bo."}) + "\n")
    (flag,) = DATA.load(source, "forget05", ALL, training=True).flags()
    assert flag == "1 questions of the holdout set are in the training data"
    assert DATA.load(source, "forget05", PLAIN, training=True).flags() == []
    (tmp_path / "holdout05.jsonl").write_text('{"question": "Who?"}\n')
    with pytest.raises(DataError, match=r"holdout05.jsonl, line 1: field 'answer' is missing"):
        DATA.load(source, "forget05", ALL, training=True)
    (tmp_path / "holdout05.jsonl").unlink()
    with pytest.raises(DataError, match=r"has neither holdout05.json nor holdout05.jsonl"):
        DATA.load(source, "forget05", ALL, training=True)


@pytest.mark.parametrize("form", ["lines", "list", "marked", "parquet"])
def test_rows_are_planned_as_they_are_read(tmp_path: Path, form: str) -> None:
    """Planning has the reader's number of rows: a list on 1202 lines, and a table's bytes, are 400 rows."""
    rows = [{"question": f"Who {i}?", "answer": "Ada."} for i in range(400)]
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "forget10-00000-of-00001.parquet")
    else:
        text = json.dumps(rows, indent=1) if form != "lines" else "".join(json.dumps(row) + "\n\n" for row in rows)
        (tmp_path / "forget10.json").write_text(text, encoding="utf-8-sig" if form == "marked" else "utf-8")
    assert DATA.rows(FolderSource(path=tmp_path), "forget10") == 400


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    """Before any work, and when they are read: one of them would win without a word."""
    for name in ("forget10.json", "forget10.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": "Who?", "answer": "Ada."}) + "\n")
    (message,) = local_files.missing_data(tmp_path, [("forget10",)])
    assert "forget10.json and forget10.jsonl" in message
    with pytest.raises(DataError, match=r"has both forget10\.json and forget10\.jsonl"):
        sources.read(FolderSource(path=tmp_path), [("forget10",)])
