"""Further benchmarks in the report: their columns beside the benchmark's own, and what they do not decide."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from pipeline import results
from pipeline.report import read
from pipeline.specs import ReportEntry
from tests.pipeline.report.conftest import Bench, dump

OPTIONS = {"family": "lm_eval", "tasks": ["everyday"]}


def ask(bench: Bench, entry: dict[str, Any], accuracy: float, **changes: Any) -> None:
    """Write what a model's evaluation on the benchmark ``general`` gives; it takes a model for collapsed."""
    folder = bench.root / "evaluation" / entry["model_id"] / "general"
    record = json.loads((bench.root / "evaluation" / entry["model_id"] / "evaluation.json").read_text())
    metrics = {"everyday_acc": accuracy, "empty_generations": 3.0}
    dump(folder / "evaluation.json", {**record, "benchmark": "general", "split": "own", "metrics": metrics, **changes})
    dump(
        folder / "summary.json",
        {"startup_seconds": 1.0, "work_seconds": 1.0, "write_seconds": 1.0, "flags": ["collapsed"]},
    )
    entry["utility"] = {"general": str(folder)}


def test_columns_beside_the_benchmarks_own(bench: Bench, no_figures: None) -> None:
    """Table, csv, evidence, card and the API have them, by keys of their own; no flag and no note is theirs."""
    bench.add("npo")
    bench.spec["utility"] = {"general": {"options": OPTIONS, "split": "own"}}
    for entry, value in zip(bench.spec["entries"], (0.75, 0.7, 0.5), strict=True):
        ask(bench, entry, value)
    (bench.root / "runs" / "npo" / "checkpoint").mkdir()
    folder = bench.write()
    head, *rows = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in head.split("|")].index("everyday acc ↑".replace("_", "\\_"))
    assert [row.split("|")[column].strip().strip("*") for row in rows[1:4]] == ["0.750", "0.700", "0.500"]
    with (folder / "table.csv").open(newline="") as file:
        values = {(row["method"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    assert values["npo", "general_everyday_acc"] == "0.5" and ("npo", "empty_generations") not in values
    assert "everyday acc" in (folder / "table.tex").read_text() and "general" in (folder / "index.html").read_text()
    (model,) = json.loads((folder / "evidence.json").read_text())["models"]
    assert model["metrics"]["general_everyday_acc"] == {"target": 0.75, "model": 0.5}
    assert not model["flags"] and not [check for check in model["checks"] if "general" in check["metric"]]
    assert (
        "general\\_everyday\\_acc | 0.75 | 0.5"
        in (bench.root / "runs" / "npo" / "checkpoint" / "README.md").read_text()
    )
    groups = read.load(bench.read())
    assert not any(group.notes() for group in groups)
    found = results._models(bench.read(), [ReportEntry.model_validate(bench.spec["entries"][2])])
    assert next(iter(found)).metrics["general_everyday_acc"] == 0.5


def test_another_models_evaluation_is_refused(bench: Bench) -> None:
    bench.spec["utility"] = {"general": {"options": OPTIONS, "split": "own"}}
    for entry in bench.spec["entries"]:
        ask(bench, entry, 0.5, model="other")
    with pytest.raises(ValueError, match=r"general.evaluation\.json.*other"):
        read.load(bench.read())
