"""What a judge found stands in the full table, beside what the evaluation measured."""

from __future__ import annotations

import csv
import io

import pytest

from pipeline.data.json_files import read_object
from pipeline.judging import rubric
from pipeline.report import read
from tests.pipeline.report.conftest import Bench, dump

pytestmark = pytest.mark.slow

METRICS = dict.fromkeys((*rubric.KEYS.values(), rubric.HARMONIC), 1.25)


def judged(bench: Bench, number: int, flags: tuple[str, ...] = (), **values: float | None) -> None:
    """Have the ``number``-th model of the report judged."""
    entry = bench.spec["entries"][number]
    folder = bench.root / "judge" / entry["model_id"]
    found = {"schema": 1, "model": entry["model_id"], "benchmark": "mini", "split": "forget10"}
    found |= {"seed": None, "metrics": METRICS | values, "settings": {"model": "the-judge"}, "provenance": {}}
    found |= {"rubric": {"version": 1}, "counts": {}}
    dump(folder / "judgement.json", found)
    times = {"startup_seconds": 1.0, "work_seconds": 62.0, "write_seconds": 0.0}
    dump(folder / "summary.json", {**times, "flags": list(flags)})
    entry["judgement"] = str(folder)


@pytest.fixture
def report(bench: Bench) -> Bench:
    bench.add("npo")
    bench.add("ga")
    judged(bench, 0)
    judged(bench, 2, judge_hm=0.5)
    judged(bench, 3, flags=("12 of 40 judgements failed",), judge_forget_leakage=None, judge_hm=None)
    return bench


def test_table_and_page(report: Bench) -> None:
    folder = report.write()
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    found = {(row["method"], row["metric"]): row["value"] for row in rows if row["metric"].startswith("judge_")}
    assert found["npo", "judge_hm"] == "0.5" and found["npo", "judge_forget_leakage"] == "1.25"
    assert found["ga", "judge_forget_leakage"] == "" and ("retrain", "judge_hm") not in found
    markdown = (folder / "table.md").read_text()
    assert "Judge" not in markdown and "12 of 40 judgements failed" in markdown
    page = (folder / "index.html").read_text()
    assert (
        "LLM judge the-judge; not comparable with others&#39;" in page or "LLM judge the-judge; not comparable" in page
    )
    assert "Judge: harmonic mean" in page


def test_a_report_without_a_judge_says_nothing_of_one(bench: Bench) -> None:
    bench.add("npo")
    assert "Judge" not in (bench.write() / "index.html").read_text()
    assert read.judges(read.load(bench.read())) == []


def test_the_judges_time_and_flags_are_the_models(report: Bench) -> None:
    groups = read.load(report.read())
    assert read.judges(groups) == ["the-judge"]
    steps = [(stage.name, stage.step) for stage in read.timings(report.read(), groups)]
    assert steps.index(("npo", "judge")) > steps.index(("ga", "evaluate"))
    assert "12 of 40 judgements failed" in groups[-1].notes()
    assert groups[-1].sound  # a judge that fails says nothing about the model


@pytest.mark.parametrize(
    ("change", "message"), [({"model": "other"}, "model is 'other'"), ({"metrics": {"judge_hm": "x"}}, "judge_hm")]
)
def test_a_judgement_that_does_not_fit(report: Bench, change: dict, message: str) -> None:
    path = report.root / "judge" / "npo" / "judgement.json"
    dump(path, read_object(path) | change)
    with pytest.raises(ValueError, match=message) as error:
        read.load(report.read())
    assert str(path) in str(error.value)
