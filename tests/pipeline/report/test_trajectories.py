"""What validation measured during unlearning, in the report: curves, the selected step, notes of the table."""

from __future__ import annotations

import json

import pytest

from pipeline.report import curves, read
from pipeline.report.style import Look
from tests.pipeline.report.test_page import Page

pytestmark = pytest.mark.slow


def test_each_method_and_the_comparison_show_the_trajectory_and_the_selected_step(bench):
    for seed, selected in ((0, 8), (1, 4)):
        bench.add("npo", seed=seed, trajectory=bench.trajectory(1 - 0.5 * seed), selected=selected)
    bench.add("graddiff", trajectory=bench.trajectory())
    bench.add("rmu")
    folder = bench.write()
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert {"npo-validation", "graddiff-validation"} <= drawn and "rmu-validation" not in drawn
    assert {f"validation-{key}" for key in ("score", "forget-probability", "retain-probability")} <= drawn
    group = next(group for group in read.load(bench.read()) if group.method == "npo")
    line = curves.trajectory_of("npo", Look("#000000", "o"), group, "score")
    assert line.steps == [0, 4, 8, 12] and line.selected == [4, 8] and not line.gaps
    assert line.mean == pytest.approx([0.15, 0.45, 0.75, 0.375])
    assert line.low == pytest.approx([0.1, 0.3, 0.5, 0.25]) and line.high == pytest.approx([0.2, 0.6, 1.0, 0.5])
    page = Page((folder / "index.html").read_text())
    assert "Validation during unlearning" in page.text
    assert page.text.count("Circled: the steps whose weights were written.") == 3 + 2
    assert "Not measured: rmu." in page.text


@pytest.mark.usefixtures("no_figures")
def test_the_table_names_a_step_that_was_selected(bench):
    for seed, selected in ((0, 8), (1, 4)):
        bench.add("npo", seed=seed, trajectory=bench.trajectory(), selected=selected)
    bench.add("graddiff", trajectory=bench.trajectory(), selected=8)
    bench.add("ga", trajectory=bench.trajectory())
    bench.add("rmu")
    notes = {group.method: group.notes() for group in read.load(bench.read())}
    assert notes["npo"] == ["selected steps 8, 4"] and notes["graddiff"] == ["selected step 8"]
    assert notes["ga"] == notes["rmu"] == []
    assert "selected steps 8, 4 |" in (bench.write() / "table.md").read_text()


def test_a_page_without_a_trajectory_does_not_speak_of_it(bench):
    bench.add("npo")
    folder = bench.write()
    assert "alidation" not in (folder / "index.html").read_text()
    assert not list((folder / "figures").glob("*validation*"))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("trajectory.jsonl", {"score": None}, "trajectory.jsonl, line 1: 'score' must be a number, is null"),
        ("trajectory.jsonl", {"score": ...}, "trajectory.jsonl, line 1: 'score' is missing"),
        ("summary.json", {"selected_step": ...}, "summary.json: 'selected_step' is missing"),
        ("summary.json", {"selected_step": 5}, "summary.json: 'selected_step' is 5, a step that "),
    ],
)
def test_a_trajectory_that_will_not_do(bench, file, values, message):
    bench.add("npo", trajectory=bench.trajectory()[2:3], selected=8)
    path = bench.root / "runs" / "npo" / file
    found = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))
    with pytest.raises(ValueError) as error:
        read.load(bench.read())
    assert message in str(error.value)
