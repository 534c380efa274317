"""The report of what succeeded: which rows it has, and why the others are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.specs import ReportSpec
from pipeline.workflow import failures, partial_report
from pipeline.workflow.plan import Plan
from pipeline.workflow.report_job import files_of

LINES = [
    "failed: unlearn",
    "  what happened: a rank failed",
    "  first error: ValueError: NaN",
    "  log: l",
    "  what to do: x",
]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan(load("mini"), tmp_path_factory.mktemp("results"))


def finish(plan: Plan, *models: str) -> None:
    """Let these models be evaluated."""
    spec = plan.jobs["report"].spec
    assert isinstance(spec, ReportSpec)
    for entry in spec.entries:
        if entry.model_id in models:
            for file in files_of(entry):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()


def test_rows_that_succeeded_and_why_the_others_did_not(plan: Plan) -> None:
    """A model whose step failed, one that waits for another's, and none where nothing is evaluated or all is."""
    spec = plan.jobs["report"].spec
    assert isinstance(spec, ReportSpec)
    unlearned = [entry for entry in spec.entries if entry.kind == "unlearned"]
    assert partial_report.specification(plan, {}) is None, "there is nothing to report"
    finish(plan, "target", unlearned[0].model_id)

    failed = unlearned[1].run
    assert failed is not None
    failures.note([str(failed / "spec.yaml"), str(failed / "summary.json")], LINES)
    known = failures.noted() | {plan.paths.model(plan.compared[1]).absolute(): ["failed: train: retrain"]}
    part = partial_report.specification(plan, known)

    assert part is not None and part.output == plan.paths.root / "report-partial"
    assert [entry.model_id for entry in part.entries] == ["target", unlearned[0].model_id]
    reasons = {row.model_id: row.lines for row in part.failed}
    assert reasons[unlearned[1].model_id] == LINES
    assert reasons["retrain"] == reasons[unlearned[2].model_id] == ["failed: train: retrain"], "it waits for that"
    alone = partial_report.specification(plan, failures.noted())
    assert alone is not None and {row.model_id: row.lines for row in alone.failed}["retrain"] == [
        "not begun: the run ended before"
    ]

    finish(plan, *(entry.model_id for entry in spec.entries))
    assert partial_report.specification(plan, known) is None, "the report itself can be made"


def test_a_report_that_lacks_rows_goes_when_there_is_one_of_everything(plan: Plan) -> None:
    folder = plan.paths.root / partial_report.FOLDER
    folder.mkdir(parents=True)
    (folder / "index.html").touch()
    partial_report.remove(plan)
    partial_report.remove(plan)
    assert not folder.exists() and plan.paths.root.exists()


def test_a_later_request_keeps_what_was_attacked_of_it(tmp_path: Path) -> None:
    """Where it is finished: neither it nor what became of it by an attack is missing."""
    plan = Plan(load("mini-muse-requests", settings=["robustness={quantise: [int4]}"]), tmp_path)
    spec = plan.jobs["report"].spec
    assert isinstance(spec, ReportSpec)
    later = next(entry for entry in spec.later_requests)
    attacked = next(one for one in spec.attacked if one.model_id == f"{later.model_id}.{one.attack}")
    first = next(one for one in spec.entries if (one.method, one.seed) == (later.method, later.seed))
    for entry in (first, later, attacked):
        for file in files_of(entry):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    part = partial_report.specification(plan, {})
    assert part is not None and [one.model_id for one in part.attacked] == [attacked.model_id]
