"""Several requests to forget in a report: tables and figures over requests, and nothing of them in the main table."""

from __future__ import annotations

import csv
import json

import pytest

from pipeline.report.__main__ import main
from pipeline.report.tables import NONE
from tests.pipeline.report.conftest import Bench, dump

pytestmark = pytest.mark.slow


def add(bench: Bench, model: str, request: int, **values: float) -> None:
    """The model of an entry's method and seed after another request."""
    entry = next(entry for entry in bench.spec["entries"] if entry["model_id"] == model)
    after = f"{entry['method']}.sust-{request}-seed-{entry['seed']}"
    evaluation, run = bench.root / "evaluation" / after, bench.root / "runs" / after
    for path, copy in ((evaluation, bench.root / "evaluation" / model), (run, bench.root / "runs" / model)):
        path.mkdir(parents=True)
        for file in copy.iterdir():
            (path / file.name).write_text(file.read_text())
    before = json.loads((evaluation / "evaluation.json").read_text())
    dump(evaluation / "evaluation.json", {**before, "model": after, "metrics": {**before["metrics"], **values}})
    changed = {"model_id": after, "request": request, "evaluation": str(evaluation), "run": str(run)}
    bench.spec.setdefault("later_requests", []).append({**entry, **changed})
    bench.spec["requests"] = "sustainability"


@pytest.fixture
def later_requests(bench: Bench) -> Bench:
    """Two methods and three requests, one method with two seeds."""
    for seed in (0, 1):
        bench.add("npo", title="NPO", seed=seed, forget_probability=0.1 + 0.1 * seed, model_utility=0.6)
    bench.add("ga", title="GA", seed=0, forget_probability=0.05, model_utility=0.3)
    for request in (2, 3):
        for seed in (0, 1):
            add(
                bench,
                f"npo-seed-{seed}",
                request,
                forget_probability=0.2 + 0.1 * seed,
                model_utility=0.7 - 0.1 * request,
            )
        add(bench, "ga-seed-0", request, forget_probability=0.0, model_utility=0.0)
    return bench


def made(bench: Bench):
    path = bench.root / "spec.json"
    dump(path, bench.spec)
    main([str(path)])
    return bench.root / "report"


@pytest.mark.usefixtures("no_figures")
def test_tables_have_a_column_a_request(later_requests: Bench) -> None:
    text = (made(later_requests) / "table.md").read_text()
    part = text.split("## Requests to forget: Model utility ↑")[1].split("## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    assert rows[0] == "| Model | Request 1 | Request 2 | Request 3 |"
    assert rows[2:] == ["| NPO | 0.600 | 0.500 | 0.400 |", "| GA | 0.300 | 0.000 | 0.000 |"]
    assert "each model starts from the one that has forgotten those before" in part
    main_table = [line for line in text.split("## ")[0].splitlines() if line.startswith("| NPO")]
    assert len(main_table) == 1 and "0.600" in main_table[0]


def test_a_method_that_lacks_a_request_has_a_dash_there(later_requests: Bench) -> None:
    """Only this leaves a later request out, as the report of what succeeded does where a run of it failed."""
    kept = [one for one in later_requests.spec["later_requests"] if (one["method"], one["request"]) != ("ga", 3)]
    later_requests.spec["later_requests"] = kept
    text = (made(later_requests) / "table.md").read_text()
    assert f"| GA | 0.300 | 0.000 | {NONE} |" in text.split("## Requests to forget: Model utility ↑")[1]


@pytest.mark.usefixtures("no_figures")
def test_every_number_is_in_the_csv(later_requests: Bench) -> None:
    rows = list(csv.DictReader((made(later_requests) / "table.csv").open()))
    found = {
        (row["method"], row["seed"], row["request"]): float(row["value"])
        for row in rows
        if row["metric"] == "forget_probability"
    }
    assert found["npo", "1", "3"] == pytest.approx(0.3) and found["npo", "1", ""] == pytest.approx(0.2)
    assert {key[2] for key in found} == {"", "2", "3"} and len(found) == len(later_requests.spec["entries"]) + 6


def test_figures_and_page(later_requests: Bench) -> None:
    report = made(later_requests)
    figure = (report / "figures" / "requests-model-utility.svg").read_text()
    assert "Model utility after each request" in figure and "NPO" in figure and "target (reference)" in figure
    page = (report / "index.html").read_text()
    assert 'id="requests"' in page and page.count('aria-label="Model utility after each request"') == 1
    assert json.loads((report / "summary.json").read_text())["models"] == len(later_requests.spec["entries"])


def test_without_further_requests_nothing_of_it_is_there(bench: Bench) -> None:
    bench.add("npo", title="NPO", seed=0)
    report = made(bench)
    assert "Requests to forget" not in (report / "table.md").read_text()
    assert 'id="requests"' not in (report / "index.html").read_text()
    assert not list((report / "figures").glob("requests-*"))
