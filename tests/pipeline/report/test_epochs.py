"""The benchmark's metrics after every evaluated epoch, in the report."""

from __future__ import annotations

import csv
import json

import pytest

from pipeline.report import epochs, read
from pipeline.report.curves import Line
from tests.pipeline.report.conftest import Bench, dump

pytestmark = pytest.mark.slow


def add(bench: Bench, seed: int, epoch: int, **values: float) -> None:
    """The model of a seed of NPO after an epoch."""
    entry = next(entry for entry in bench.spec["entries"] if entry["model_id"] == f"npo-seed-{seed}")
    after = f"npo-seed-{seed}.epoch-{epoch}"
    evaluation = bench.root / "evaluation" / after
    evaluation.mkdir(parents=True)
    for file in (bench.root / "evaluation" / f"npo-seed-{seed}").iterdir():
        (evaluation / file.name).write_text(file.read_text())
    before = json.loads((evaluation / "evaluation.json").read_text())
    dump(evaluation / "evaluation.json", {**before, "model": after, "metrics": {**before["metrics"], **values}})
    changed = {"model_id": after, "epoch": epoch, "evaluation": str(evaluation), "run": None}
    bench.spec.setdefault("by_epoch", []).append({**entry, **changed})


def test_curves_go_from_target_over_epochs_with_the_chosen_one_circled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends in its last epoch is there a second time; the table knows nothing of epochs."""
    for seed, selected in ((0, 8), (1, None)):
        bench.add("npo", title="NPO", seed=seed, model_utility=0.6, trajectory=bench.trajectory(), selected=selected)
    add(bench, 0, 1, model_utility=0.8)
    add(bench, 0, 2, model_utility=0.6)
    add(bench, 1, 1, model_utility=0.7)
    ended = next(entry for entry in bench.spec["entries"] if entry["model_id"] == "npo-seed-1")
    bench.spec["by_epoch"].append({**ended, "epoch": 2, "run": None})
    run = bench.root / "runs" / "npo-seed-0" / "summary.json"
    dump(run, {**json.loads(run.read_text()), "saved_epochs": {"1": 4, "2": 8}})
    drawn: dict[str, list[Line]] = {}
    compared = epochs.compared

    def noting(name: str, section: str, title: str, lines: list[Line]):
        drawn[name] = lines
        return compared(name, section, title, lines)

    monkeypatch.setattr(epochs, "compared", noting)
    folder = bench.write()
    (line,) = drawn["epochs-model-utility"]
    assert line.steps == [0, 1, 2] and line.mean == pytest.approx([0.9, 0.75, 0.6])
    assert line.low == pytest.approx([0.9, 0.7, 0.6]) and line.selected == [2] and line.axis == "epoch"
    assert (folder / "figures" / "epochs-model-utility.svg").exists()
    page = (folder / "index.html").read_text()
    assert "Metrics by epoch" in page and "Circled: the epochs whose weights were written." in page
    rows = [row for row in csv.DictReader((folder / "table.csv").open()) if row["metric"] == "model_utility"]
    assert {(row["seed"], row["epoch"]): float(row["value"]) for row in rows if row["method"] == "npo"} == {
        ("0", ""): 0.6,
        ("1", ""): 0.6,
        ("0", "1"): 0.8,
        ("1", "1"): 0.7,
        ("0", "2"): 0.6,
        ("1", "2"): 0.6,
    }
    assert "0.800" not in (folder / "table.md").read_text()
    assert [group.epoch for group in read.by_epoch(bench.read())] == [1, 2]
