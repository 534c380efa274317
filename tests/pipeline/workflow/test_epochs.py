"""Epochs that are evaluated: which a run saves, the jobs that evaluate them, and what the report is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.specs import UnlearnSpec
from pipeline.benchmarks.evaluated_model import ModelId
from pipeline.config.load import load
from pipeline.specs import EvaluateSpec, ReportSpec
from pipeline.workflow import costs, resources
from pipeline.workflow.plan import Plan


@pytest.mark.parametrize(("select", "saved"), [("last", [4, 8]), ("best-on-validation", [4, 8, 10])])
def test_epochs_are_saved_evaluated_and_reported(tmp_path: Path, select: str, saved: list[int]) -> None:
    """The last epoch is what a run ends in, unless validation chose another; it is in the curve either way."""
    settings = ["methods=[npo]", "evaluate_every.epochs=4", f"select={select}"]
    plan = Plan(load("mini", settings=settings), tmp_path)
    run, report = plan.jobs["unlearned/npo/seed-0"].spec, plan.jobs["report"].spec
    assert isinstance(run, UnlearnSpec) and run.saved_epochs == saved
    names = [f"npo-seed-0.epoch-{epoch}" for epoch in saved]
    assert [str(model) for model in plan.evaluated][-len(saved) :] == names
    for name, epoch in zip(names, saved, strict=True):
        assert ModelId.parse(name) == ModelId("npo", 0, epoch=epoch)
        job = plan.jobs[f"evaluation/{name}/mini"]
        assert isinstance(job.spec, EvaluateSpec) and job.spec.checkpoint == run.output / "epochs" / f"epoch-{epoch}"
        assert job.reads["checkpoint"] == (run.output / "epochs",), "an output of the run as a whole"
    assert isinstance(report, ReportSpec)
    assert {entry.epoch: entry.model_id for entry in report.by_epoch} == {
        10: "npo-seed-0",
        **dict(zip(saved, names, strict=True)),
    }
    assert [entry.model_id for entry in report.entries] == ["target", "retrain", "npo-seed-0"]
    assert len(set(plan.jobs["report"].inputs)) == len(plan.jobs["report"].inputs)


def test_their_checkpoints_cost_disk_and_time(tmp_path: Path) -> None:
    settings = ["methods=[npo]", "unlearning.validation=null"]
    plans = [Plan(load("mini", settings=[*settings, *more]), tmp_path) for more in ([], ["evaluate_every.epochs=2"])]
    gpu = costs.gpus()["h100-80"]
    disks = [{cost.name: cost.disk for cost in costs.costs(plan, gpu)}["unlearned/npo/seed-0"] for plan in plans]
    assert disks[1] == 5 * disks[0], "of epochs 2, 4, 6 and 8 beside the last"
    specs = [plan.jobs["unlearned/npo/seed-0"].spec for plan in plans]
    without, with_them = (
        resources._seconds(plan, spec, False, 0)
        for plan, spec in zip(plans, specs, strict=True)  # type: ignore[arg-type] # unlearning
    )
    assert with_them - without == pytest.approx(4 * 4 * plans[0].config.shape.parameters / resources.DISK)
