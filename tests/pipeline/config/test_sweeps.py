"""Sweeps: which runs they make, under which names, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.config import sweeps
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.specs import ReportSpec
from pipeline.workflow.plan import Plan

GRID = "sweep={blur-npo: {rule.gamma: [0.5, 1, 2], forget.beta: [0.05, 1e-5]}}"


def test_a_grid_is_run_with_every_seed_and_is_in_plan_and_report(tmp_path: Path) -> None:
    """The method's own run gives way, its overrides stay, and each model knows its point."""
    plan = Plan(load("mini", settings=["methods=[npo, blur-npo]", "seeds=[0, 1]", GRID]), tmp_path)
    points = [(gamma, beta) for gamma in (0.5, 1, 2) for beta in (0.05, 1e-5)]
    names = [f"blur-npo-gamma-{gamma:g}-beta-{'1e-5' if beta < 0.01 else beta}" for gamma, beta in points]
    assert plan.run_folders == ["npo", *names]
    unlearned = [name for name in plan.jobs if name.startswith("unlearned/")]
    assert unlearned == [f"unlearned/{name}/seed-{seed}" for name in ("npo", *names) for seed in (0, 1)]
    spec = plan.jobs[f"unlearned/{names[1]}/seed-1"].spec
    assert spec.rule.gamma == 0.5 and spec.forget_loss.beta == 1e-5  # type: ignore[attr-defined] # an unlearning
    report = plan.jobs["report"].spec
    assert isinstance(report, ReportSpec)
    swept = {entry.model_id: (entry.swept, entry.point) for entry in report.entries if entry.swept}
    assert swept[f"{names[0]}-seed-0"] == ("blur-npo", {"rule.gamma": 0.5, "forget.beta": 0.05})
    assert len(swept) == 12


def test_a_list_over_a_variant_and_keys_that_end_alike(tmp_path: Path) -> None:
    """Points of a list need not have the same keys, and what the point leaves alone is the method's."""
    document = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
    document["methods"] = [{"method": "rmu", "variant": "a", "overrides": document["methods"][5]["overrides"]}, "ga"]
    document["sweep"] = {"rmu-a": [{"forget.steering": 2}, {"retain.weight": 3.0, "training.epochs": 1}]}
    file = tmp_path / "experiments" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(document))
    first, second, other = load(file).runs
    assert [first.id, second.id, other.id] == ["rmu-a-steering-2", "rmu-a-weight-3-epochs-1", "ga"]
    assert (first.method.retain.weight, second.method.retain.weight) == (10.0, 3.0)  # type: ignore[union-attr] # RMU's
    document["sweep"] = {"rmu-a": {"training.optimizer.name": ["adamw"], "rule.name": ["weighted-sum"]}}
    file.write_text(yaml.safe_dump(document))
    assert load(file).runs[0].id == "rmu-a-rule.name-weighted-sum-training.optimizer.name-adamw"


@pytest.mark.parametrize(
    ("value", "name"),
    [(True, "true"), (None, "null"), (1, "1"), (1.0, "1"), (-2.5, "-2.5"), (1e-5, "1e-5"), (1e20, "1e20"),
     (1.25e-10, "1.25e-10"), ("Two words", "two-words")],
)  # fmt: skip
def test_values_in_names(value: sweeps.Value, name: str) -> None:
    assert sweeps.text(value) == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sweep.blur-npo.rule.gama=[1]"], "--set sweep.blur-npo.rule.gama[0]: unknown key; did you mean 'gamma'?"),
        (["sweep.blur-npo.rule.gamma=[1, x]"], "--set sweep.blur-npo.rule.gamma[1]: 'x' is not allowed"),
        (["sweep.blur-npo.rule.gamma=[]"], "--set sweep.blur-npo.rule.gamma: [] is not allowed"),
        (["sweep.blur-npo.rule.gamma=3"], "--set sweep.blur-npo.rule.gamma: 3 is not allowed"),
        (["sweep.blur-npo.rule.gamma=[1, 1.0]"], "--set sweep.blur-npo.rule.gamma[1]: two points are called 'gamma-1'"),
        (["sweep.blur-npo.rule.gamma=[.nan]"], "--set sweep.blur-npo.rule.gamma[0]: nan is not allowed"),
        (["sweep={blurnpo: {rule.gamma: [1]}}"], "--set sweep.blurnpo: unknown method 'blurnpo'; did you mean 'blur"),
        (["sweep={blur-npo: [{}]}"], "--set sweep.blur-npo[0]: {} is not allowed"),
        (["sweep={npo: {forget: [1], forget.beta: [1]}}"], "--set sweep.npo.forget[0]: 'forget' holds 'forget.beta'"),
        (["sweep={npo: {.beta: [1]}}"], "--set sweep.npo..beta[0]: '.beta' is not allowed"),
        (["sweep={npo: {forget.name: [" + "x" * 130 + "]}}"], "--set sweep.npo.forget.name[0]: the name "),
    ],
)
def test_a_mistake_is_said_with_its_key(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("mini", settings=settings)
    assert [line for line in error.value.problems if line.startswith(message)], error.value.problems


def test_what_the_file_sweeps_is_not_set_in_vain(tmp_path: Path) -> None:
    """A setting that the sweep would replace is refused, and one of another key is not."""
    document = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
    file = tmp_path / "experiments" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump({**document, "sweep": {"blur-npo": {"rule.gamma": [1]}}}))
    assert load(file, settings=["methods.blur-npo.forget.beta=0.3"]).runs[6].method.forget.beta == 0.3  # type: ignore[attr-defined] # NPO's
    with pytest.raises(ConfigError) as error:
        load(file, settings=["methods.blur-npo.rule.gamma=0.3"])
    assert "sweep.blur-npo.rule.gamma[0]" in str(error.value)


BUDGET = "select={budget: {metric: retain_probability, at_least: 0.95, of: target}}"


@pytest.mark.parametrize(
    ("setting", "step", "report"),
    [
        ("select=last", "last", (None, None)),
        ("select=best-on-validation", "best-on-validation", ("best-on-validation", None)),
        (BUDGET, None, ("best-within-budget", None)),
        ("select={test_metric: forget_quality}", "last", ("test_metric", "forget_quality")),
    ],
)
def test_what_selects_is_told_to_runs_and_report(
    tmp_path: Path, setting: str, step: str | None, report: tuple[str | None, str | None]
) -> None:
    """A run that validates nothing ends in its last step; a test metric chooses no step."""
    plan = Plan(load("mini", settings=["methods.npo.rule.forget_weight=1.0", GRID, setting]), tmp_path)
    specs = {name: job.spec for name, job in plan.jobs.items()}
    told = specs["unlearned/npo/seed-0"].validation.select  # type: ignore[attr-defined] # an unlearning
    assert told == step if step else told.budget.at_least == 0.95
    assert specs["unlearned/rmu/seed-0"].validation is None  # type: ignore[attr-defined] # as above
    spec = specs["report"]
    assert isinstance(spec, ReportSpec) and (spec.chosen_by, spec.test_metric) == report


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["select=best"], "--set select: unknown value 'best'"),
        (["select={budget: {metric: forget_quality, at_least: 0.9}}"], "--set select.budget.metric: unknown value"),
        (["select={budget: {metric: retain_probability, at_least: 2}}"], "--set select.budget.at_least: 2 is not"),
        (["select={test_metric: forget_qualty}"], "--set select.test_metric: unknown metric 'forget_qualty'; did you"),
        (["select=last", "unlearning.validation.select=last"], "--set unlearning.validation.select: is given, and so"),
        (["select=best-on-validation", "unlearning.validation=null"], "--set select: needs 'unlearning.validation'"),
        (
            ["keep=selected", "sweep.npo.forget.beta=[1]"],
            "--set keep: 'selected' needs a 'select' that",
        ),
        (["keep=selected", "select=best-on-validation"], "--set keep: 'selected' without 'sweep' would keep all"),
        (["select=best-on-validation", "sweep.rmu.forget.steering=[1]"], "--set select: 'rmu' builds a part"),
        (["evaluate_every.epochs=10"], "--set evaluate_every.epochs: 'ga': 10 with 10 epochs of unlearning"),
        (["evaluate_every.epochs=1", "unlearning.epochs=2.5"], "--set evaluate_every.epochs: 'ga': 2.5 epochs"),
        (["evaluate_every.epochs=1", "unlearning.max_steps=9"], "--set evaluate_every.epochs: 'ga': 9 steps at most"),
        (["evaluate_every.epochs=1", BUDGET], "--set evaluate_every.epochs: 'ga': a run that breaks its budget"),
        (
            ["evaluate_every.epochs=1", "requests={order: sustainability, count: 2}"],
            "--set evaluate_every.epochs: with 'requests'",
        ),
    ],
)
def test_a_mistake_of_selecting_is_said_with_its_key(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("mini", settings=settings)
    assert [line for line in error.value.problems if line.startswith(message)], error.value.problems


def test_what_is_not_kept_is_released_after_all_that_reads_it(tmp_path: Path) -> None:
    """Of a sweep where a point is kept, and of every unlearned model where none is; the report comes after."""
    settings = ["methods=[npo, blur-npo]", "sweep.blur-npo.rule.gamma=[1, 2]", "unlearning.validation.every_epochs=1"]
    settings.append("select=best-on-validation")
    assert Plan(load("mini-robust", settings=settings), tmp_path).released == []
    plan = Plan(load("mini-robust", settings=[*settings, "keep=selected"]), tmp_path)
    assert plan.released == ["blur-npo-gamma-1-seed-0", "blur-npo-gamma-2-seed-0"]
    job = plan.jobs["kept/blur-npo-gamma-1-seed-0"]
    robustness = plan.config.experiment.robustness
    attacks = [attack.id for attack in (*robustness.relearned, *robustness.quantised)]
    root, model = plan.paths.root, "blur-npo-gamma-1-seed-0"
    read = {root / "evaluation" / model / "mini"}
    read |= {root / "robustness" / model / attack for attack in attacks}
    read |= {root / "evaluation" / f"{model}.{attack}" / "mini" for attack in attacks}
    assert attacks and {path.parent for path in job.reads["readers"]} == read
    folders = job.spec.checkpoints[model]  # type: ignore[attr-defined] # a release
    assert folders[0] == root / "unlearned" / "blur-npo-gamma-1" / "seed-0" / "checkpoint"
    assert len(folders) == 1 + len(attacks)
    assert root / "kept" / model / "summary.json" in plan.jobs["report"].reads["released"]
    settings = ["methods=[npo, blur-npo]", "keep=none", "evaluate_every.epochs=5"]
    every = Plan(load("mini-robust", settings=settings), tmp_path)
    assert every.released == ["npo-seed-0", "blur-npo-seed-0"]
    released = every.jobs["kept/npo-seed-0"]
    (folders,) = released.spec.checkpoints.values()  # type: ignore[attr-defined] # as above
    assert folders[-1] == root / "unlearned/npo/seed-0/epochs", "the checkpoints of its epochs, once they are evaluated"
    assert root / "evaluation/npo-seed-0.epoch-5/mini/summary.json" in released.reads["readers"]
