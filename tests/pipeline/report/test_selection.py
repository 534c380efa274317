"""Which point of a sweep is chosen, and that the tables say how."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.report.conftest import Bench, start

WITHIN_BUDGET = {"chosen_by": "best-within-budget", "budget_metric": "retain_probability"}
POINTS: dict[
    str, dict[str, Any]
] = {  # the first has the best score, the second keeps within the budget, the third the test
    "gamma-1": {"trajectory": Bench.trajectory(), "selected": 8, "flags": ("over-budget",), "forget_quality": 0.1},
    "gamma-2": {"trajectory": Bench.trajectory(0.9), "selected": 4, "forget_quality": 0.2},
    "gamma-3": {"trajectory": Bench.trajectory(0.8), "selected": 8, "flags": ("collapsed",), "forget_quality": 0.9},
}


@pytest.mark.parametrize(
    ("choice", "best", "text"),
    [
        ({"chosen_by": "best-on-validation"}, "gamma-1", "selected of 3 points on validation"),
        (WITHIN_BUDGET, "gamma-2", "selected of 3 points within the budget"),
        (
            {"chosen_by": "test_metric", "test_metric": "forget_quality"},
            "gamma-2",
            "selected of 3 points on the test metric forget_quality",
        ),
        ({}, None, "selected of"),
    ],
)
@pytest.mark.usefixtures("no_figures")
def test_the_chosen_point_is_marked(tmp_path: Path, choice: dict[str, str], best: str | None, text: str) -> None:
    """In the page, in Markdown and in the long table; a collapsed point is never chosen."""
    bench = start(tmp_path)
    for variant, given in POINTS.items():
        for seed in (0, 1):
            bench.add("blur-npo", variant=variant, seed=seed, **given)
            point = {"rule.gamma": int(variant[-1])}
            bench.spec["entries"][-1] |= {"swept": "blur-npo", "point": point}
    bench.spec |= choice
    folder = bench.write()
    rows = list(csv.DictReader((folder / "table.csv").open()))
    found = {(row["variant"], row["selected"]) for row in rows if row["swept"] == "blur-npo" and row["selected"]}
    assert found == ({(best, text)} if best else set())
    times = 1 if best else 0
    assert (folder / "table.md").read_text().replace("\\", "").count(text) == times
    assert text in (folder / "index.html").read_text() or not times


@pytest.mark.parametrize(("metric", "best"), [("retain_probability", "gamma-1"), ("retain_greedy_match", "gamma-2")])
@pytest.mark.usefixtures("no_figures")
def test_where_no_point_is_within_the_budget_it_is_the_budgets_metric_that_chooses(
    tmp_path: Path, metric: str, best: str
) -> None:
    """At step 4 the probability is .8 and the match .6; at step 8 both are .7."""
    bench = start(tmp_path)
    for variant, step in (("gamma-1", 4), ("gamma-2", 8)):
        bench.add(
            "blur-npo", variant=variant, trajectory=Bench.trajectory(), selected=step, flags=("over-budget",), seed=0
        )
        bench.spec["entries"][-1] |= {"swept": "blur-npo", "point": {"rule.gamma": int(variant[-1])}}
    bench.spec |= {**WITHIN_BUDGET, "budget_metric": metric}
    rows = csv.DictReader((bench.write() / "table.csv").open())
    assert {row["variant"] for row in rows if row["selected"]} == {best}


def test_a_report_of_before_the_budgets_metric_was_named_is_read(tmp_path: Path) -> None:
    bench = start(tmp_path)
    bench.spec["chosen_by"] = "best-within-budget"
    assert bench.read().budget_metric == "retain_probability"
