"""Target and retrain of further seeds: trained, evaluated and attacked as the first ones, and no part of unlearning."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.specs import TrainSpec
from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError
from pipeline.specs import ReportSpec
from pipeline.workflow.plan import Plan


def test_repeats_are_trained_with_seeds_of_their_own_and_attacked(tmp_path: Path) -> None:
    plan = Plan(load("mini-meta-evaluation"), tmp_path)
    plain = Plan(load("mini-meta-evaluation", settings=["training.repeats=1"]), tmp_path)
    more = {name for name in plan.jobs if name not in plain.jobs}
    attacks = [attack.name for attack in plan.jobs["report"].spec.attacks]  # type: ignore[attr-defined] # a report
    again = [f"{which}-seed-{k}" for which in ("target", "retrain") for k in (1, 2)]
    assert more == {
        *(f"models/{model}" for model in again),
        *(f"robustness/{model}/{attack}" for model in again for attack in attacks),
        *(f"evaluation/{model}/mini" for model in again),
        *(f"evaluation/{model}.{attack}/mini" for model in again for attack in attacks),
    }
    specs = [plan.jobs[f"models/{name}"].spec for name in ("target", "target-seed-1", "target-seed-2")]
    assert all(isinstance(spec, TrainSpec) for spec in specs)
    assert [spec.seed for spec in specs] == [0, 1, 2]  # type: ignore[attr-defined] # as above
    assert {spec.model_copy(update={"seed": 0, "output": tmp_path}).model_dump_json() for spec in specs} == {
        specs[0].model_copy(update={"output": tmp_path}).model_dump_json()
    }
    evaluated = plan.jobs["evaluation/target-seed-1/mini"]
    assert evaluated.reads["checkpoint"] == (specs[1].output / "checkpoint",) and evaluated.reads["retrain"]
    report = plan.jobs["report"].spec
    assert isinstance(report, ReportSpec)
    wanted = [model + end for model in again for end in ("", *(f".{attack}" for attack in attacks))]
    assert sorted(entry.model_id for entry in report.repeats) == sorted(wanted)
    assert not {entry.model_id for entry in (*report.entries, *report.attacked)} & set(wanted)


def test_what_is_not_trained_here_is_not_trained_again() -> None:
    with pytest.raises(ConfigError) as error:
        load("tofu-llama-3.2-1b", settings=["training.repeats=2"])
    assert any(line.startswith("--set training.repeats: 2 without training.target") for line in error.value.problems)


def test_there_is_a_seed_for_each_repeat(tmp_path: Path) -> None:
    last = 2**32 - 3
    assert Plan(load("mini-meta-evaluation", settings=[f"training.target.seed={last}"]), tmp_path).jobs
    with pytest.raises(ConfigError) as error:
        load("mini-meta-evaluation", settings=[f"training.target.seed={last + 1}"])
    assert error.value.problems == [
        f"--set training.target.seed: {last + 1}, from which 3 repeats count up; allowed: 0 to {last}"
    ]


def test_where_answers_are_judged_those_of_repeats_are_part_of_the_report(tmp_path: Path) -> None:
    """Only this has a judge and repeats: what was paid for is read."""
    judge = "judge={base_url: 'http://localhost:1/v1', model: x}"
    plan = Plan(load("mini-meta-evaluation", settings=[judge]), tmp_path)
    report = plan.jobs["report"]
    assert isinstance(report.spec, ReportSpec)
    plain = [entry for entry in report.spec.repeats if entry.attack is None]
    assert len(plain) == 4 and all(entry.judgement for entry in plain)
    assert {entry.judgement / "judgement.json" for entry in plain if entry.judgement} <= set(report.reads["judgements"])
    assert all(entry.run and entry.run / "summary.json" in report.reads["runs"] for entry in report.spec.repeats)
