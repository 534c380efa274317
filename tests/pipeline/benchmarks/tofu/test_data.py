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


def questions(rows: list[Any]) -> list[str]:
    return [row.question for row in rows]


def test_requests_are_what_larger_splits_add(tmp_path: Path) -> None:
    """Only this looks at the rows of TOFU's requests: disjoint, all of the largest split, and none of them kept."""
    source = SyntheticSource(authors=40, questions_per_author=2, background_authors=0)
    later = DATA.requests(source, "forget01", "sustainability")[1:]
    sets = (*PLAIN, "request_2", "request_3")
    content = DATA.load(source, "forget01", sets, training=True, requests=later)
    rows = {name: questions(found) for name, found in content.splits.rows.items()}
    parts = [rows[name] for name in ("forget01", *later)]
    assert [len(part) for part in parts] == [2, 2, 4] == [DATA.rows(source, name) for name in ("forget01", *later)]
    assert (
        sorted(question for part in parts for question in part) == sorted(rows["forget10"])
        and rows["forget05-rest_perturbed"] == parts[1]
    )
    assert not {*rows["forget10"]} & {*rows["retain90"], *rows["retain_perturbed"], *rows["retain_rephrased"]}
    manifest = json.loads(
        (
            prepared(tmp_path, sets, forget_split="forget01", source=source.model_dump(), requests=list(later))
            / "manifest.json"
        ).read_text()
    )
    assert [manifest["train"][name]["rows"] for name in ("forget", *later, "retain")] == [2, 2, 4, 72]
    assert [manifest["train"][name]["rows"] for name in ("idk", *(f"idk.{name}" for name in later))] == [10, 10, 20]
    assert manifest["evaluation"]["request_3"]["rows"] == 4
    with pytest.raises(DataError, match=r"requests: 'forget05-rest' is not one of forget10-rest, forget10 after"):
        DATA.load(source, "forget05", PLAIN, training=True, requests=["forget05-rest"])


@pytest.mark.slow
def test_real_requests(real_data: Path) -> None:
    source = FolderSource(path=real_data / "tofu")
    later = ("forget05-rest", "forget10-rest")
    content = DATA.load(source, "forget01", ("request_2", "request_3"), training=True, requests=later)
    assert [len(content.splits.rows[name]) for name in later] == [160, 200] == [DATA.rows(source, n) for n in later]
    assert [len(content.splits.rows[f"{name}_perturbed"]) for name in later] == [160, 200]
    assert content.flags() == [] and "retain99" not in content.splits.rows


def test_a_larger_split_that_lacks_a_row_is_named(tmp_path: Path) -> None:
    pair = {"question": "Who?", "answer": "Ada.", "paraphrased_answer": "It was Ada.", "perturbed_answer": ["Bo."]}
    for (name,) in DATA.files("forget05", ("request_2",), training=False):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**pair, "question": f"{name}?"}) + "\n")
    with pytest.raises(DataError, match=r"forget10_perturbed.jsonl: does not hold 'forget05_perturbed\?', which"):
        DATA.load(FolderSource(path=tmp_path), "forget05", ("request_2",), training=False)
    (tmp_path / "forget10_perturbed.jsonl").write_bytes((tmp_path / "forget05_perturbed.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"forget10_perturbed.jsonl: has no question beyond those of"):
        DATA.load(FolderSource(path=tmp_path), "forget05", ("request_2",), training=False)


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    """Before any work, and when they are read: one of them would win without a word."""
    for name in ("forget10.json", "forget10.jsonl"):
        (tmp_path / name).write_text(json.dumps({"question": "Who?", "answer": "Ada."}) + "\n")
    (message,) = local_files.missing_data(tmp_path, [("forget10",)])
    assert "forget10.json and forget10.jsonl" in message
    with pytest.raises(DataError, match=r"has both forget10\.json and forget10\.jsonl"):
        sources.read(FolderSource(path=tmp_path), [("forget10",)])
