"""Missing and malformed inputs are errors that name file and key."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest

from pipeline.data.errors import DataError
from pipeline.report import read


def change(path, **values):
    found = json.loads(path.read_text())
    found.update(values)
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


@pytest.fixture
def folders(bench):
    bench.add("npo")
    return bench.root / "evaluation" / "npo", bench.root / "runs" / "npo"


@pytest.mark.parametrize(
    ("change_to", "message"),
    [
        ({"metrics": "many"}, r"metrics: .*'many'"),
        ({"metrics": {"model_utility": "0.5"}}, r"metrics\.model_utility.*: .*'0\.5'"),
        ({"metrics": {"model_utility": True}}, r"metrics\.model_utility.*: .*True"),
        ({"metrics": ...}, "metrics: .*required"),
        ({"schema": 1}, "schema: .*2.* 1"),
        ({"model": "other"}, "model is 'other'.*'npo'"),
        ({"split": "forget01"}, "split is 'forget01'.*'forget10'"),
    ],
)
def test_evaluation_that_will_not_do(bench, folders, change_to, message):
    change(folders[0] / "evaluation.json", **change_to)
    with pytest.raises(ValueError) as error:
        read.load(bench.read())
    said = str(error.value)
    assert said.startswith(f"{folders[0] / 'evaluation.json'}: ") and re.search(message, said)


@pytest.mark.parametrize(
    "name",
    [
        "evaluation/evaluation.json",
        "evaluation/summary.json",
        "run/steps.jsonl",
        "run/trajectory.jsonl",
        "run/summary.json",
        "run/provenance.json",
    ],
)
def test_missing_file(bench, folders, name):
    folder, file = name.split("/")
    path = folders[0 if folder == "evaluation" else 1] / file
    path.unlink()
    with pytest.raises(DataError) as error:
        read.load(bench.read())
    assert str(error.value).startswith(f"{path}: cannot be read")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"work_seconds": None}, "'work_seconds' must be a number, is null"),
        ({"flags": "collapsed"}, "'flags' must be a list of texts, is \"collapsed\""),
        ({"flags": [1]}, "'flags' must be a list of texts, is [1]"),
    ],
)
def test_summary_that_will_not_do(bench, folders, values, message):
    change(folders[1] / "summary.json", **values)
    with pytest.raises(ValueError) as error:
        read.load(bench.read())
    assert str(error.value) == f"{folders[1] / 'summary.json'}: {message}"


def test_step_log_errors_name_the_line(bench, folders):
    path = folders[1] / "steps.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[2])
    del row["grad_cosine"]
    path.write_text("\n".join([*lines[:2], json.dumps(row)]))
    with pytest.raises(ValueError, match=r"steps.jsonl, line 3: 'grad_cosine' is missing"):
        read.load(bench.read())
    path.write_text("\n".join([lines[0], lines[1][:-5]]))
    with pytest.raises(ValueError, match=r"steps.jsonl, line 2: not JSON"):
        read.load(bench.read())
    path.write_text("")
    with pytest.raises(ValueError, match=r"steps.jsonl: holds no step"):
        read.load(bench.read())


def test_null_becomes_a_gap(bench):
    bench.add("npo", steps=bench.steps(3, grad_cosine=None))
    run = read.load(bench.read())[-1].runs[0]
    assert run["step"] == [1, 2, 3]
    assert all(math.isnan(value) for value in run["grad_cosine"])
    assert run["forget_loss"] == [0.5, 1.0, 1.5]


def test_a_model_that_was_not_trained_here_is_listed_under_the_step_that_made_it(bench, folders):
    change(folders[1] / "provenance.json", step="fetch")
    bench.spec["entries"][-1] |= {"kind": "target", "method": None}
    (folders[1] / "steps.jsonl").unlink()  # a published checkpoint has none
    npo = next(r for group in read.load(bench.read()) for r in group.results if r.entry.model_id == "npo")
    assert [stage.step for stage in npo.timings] == ["fetch", "evaluate"] and npo.steps is None


def test_the_program_prints_the_error_and_fails(bench, folders):
    (folders[1] / "provenance.json").unlink()
    spec = bench.root / "spec.yaml"
    spec.write_text(json.dumps(bench.spec))
    done = subprocess.run([sys.executable, "-m", "pipeline.report", str(spec)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {folders[1] / 'provenance.json'}: ") and done.stderr.count("\n") == 1
    assert not (bench.root / "report").exists()


def test_a_bad_specification_names_its_file(bench):
    bench.spec["entires"] = []
    with pytest.raises(SystemExit, match=r"spec.yaml: (.|\n)*entires"):
        bench.write()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"note": 3}, "'note' must be a text or null, is 3"),
        ({"rule_state": [1.0]}, "'rule_state' must be an object or null, is [1.0]"),
        ({"rule_state": {"dual": "1"}}, "'rule_state.dual' must be a number or null, is \"1\""),
    ],
)
def test_notes_and_states_that_will_not_do(bench, values, message):
    bench.add("pdu", steps=bench.steps(2, **values))
    with pytest.raises(ValueError) as error:
        read.load(bench.read())
    assert str(error.value).endswith(f"steps.jsonl, line 1: {message}")


def test_numbers_of_a_rules_state_become_columns(bench):
    steps = bench.steps(4)
    steps[1]["rule_state"] = {"rate": 0.5}
    steps[3]["rule_state"] = {"rate": 0.25, "phase": 1}
    bench.add("ngdiff", steps=steps)
    run = read.load(bench.read())[-1].runs[0]
    assert run["rule_state.rate"] == pytest.approx([math.nan, 0.5, math.nan, 0.25], nan_ok=True)
    assert run["rule_state.phase"] == pytest.approx([math.nan, math.nan, math.nan, 1.0], nan_ok=True)


def test_empty_and_repetitive_answers_are_noted_and_counted_over_seeds(bench):
    bench.add("npo", seed=0, empty_generations=0, repetitive_generations=3)
    bench.add("npo", seed=1, empty_generations=1, repetitive_generations=2)
    bench.add("ga", seed=0, flags=("collapsed",), empty_generations=0, repetitive_generations=0)
    notes = {group.method: group.notes() for group in read.load(bench.read())}
    assert notes["npo"] == ["1 empty answer", "5 repetitive answers"]
    assert notes["ga"] == ["collapsed"]
