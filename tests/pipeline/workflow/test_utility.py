"""Further benchmarks of an experiment: which models are asked them, what a plan holds then, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.specs import EvaluateSpec, FetchDatasetsSpec, PrepareSpec, ReportSpec
from pipeline.workflow import resources, work
from pipeline.workflow.jobs import canonical
from pipeline.workflow.plan import Plan

TOPICS = {
    "name": "topics",
    "title": "Topics",
    "family": "lm_eval",
    "source": {"kind": "synthetic_topics", "things": 8, "paragraphs": 1, "seed": 0},
    "splits": {"minerals": 1},
    "options": {"tasks": ["minerals"], "prepared": ["minerals"], "limit": 5},
}
QUESTIONS = "questions/benchmark.yaml"


def write(folder: Path, name: str, utility: list[Any], **changes: Any) -> Path:
    (folder / "questions" / "task").mkdir(parents=True, exist_ok=True)
    (folder / "questions" / "task" / "own.yaml").write_text("task: own\n")
    named = {**TOPICS, "name": "named", "source": {"kind": "folder", "path": "task"}, "splits": {"own": 1}}
    named["options"] = {"tasks": ["own"], "include_path": "task", "datasets": {"a/b": "main"}, "limit": 7}
    (folder / QUESTIONS).write_text(yaml.safe_dump(named))
    content = yaml.load((CONFIGS / "experiments" / f"{name}.yaml").read_text(), Loader)
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(content | changes | ({"utility": utility} if utility else {})))
    return path


def test_what_is_asked_of_whom(tmp_path: Path) -> None:
    """Every model of every request, and none of the attacks; the same step, with options and data of its own."""
    attacks = {"quantise": [{"scheme": "int8"}]}
    found = Plan(load(write(tmp_path, "mini-muse-requests", [QUESTIONS, TOPICS], robustness=attacks)), Path("out"))
    plain = Plan(load(write(tmp_path, "mini-muse-requests", [], robustness=attacks)), Path("out"))
    added = {name: job for name, job in found.jobs.items() if name not in plain.jobs}
    models = {str(model) for model in plain.evaluated if model.attack is None}
    assert models == {str(model) for model in found.asked} and len(models) < len(plain.evaluated)
    evaluations = {f"evaluation/{model}/{name}" for model in models for name in ("named", "topics")}
    assert set(added) == {"data/named", "data/topics", "datasets", *evaluations}
    # What was there before is what it was, but for the report.
    same = {name for name in plain.jobs if canonical(plain.jobs[name].spec) == canonical(found.jobs[name].spec)}
    assert {*plain.jobs} - same == {"report"} and "utility" not in plain.config.resolved()["experiment"]

    compiled = tmp_path / "questions" / "task" / "__pycache__" / "own.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    job = added["evaluation/retrain/named"]
    again = Plan(found.config, Path("out")).jobs["evaluation/retrain/named"]
    assert again.inputs == job.inputs, "what running a task's functions leaves there is none of the user's files"
    spec = job.spec
    assert isinstance(spec, EvaluateSpec)
    assert (spec.benchmark, spec.split, spec.options.family, spec.retain_evaluation) == (
        "named",
        "own",
        "lm_eval",
        None,
    )
    assert {found.paths.root / "datasets" / "manifest.json", tmp_path / "questions" / "task" / "own.yaml"} <= {
        *job.inputs
    }
    data = added["data/topics"].spec
    assert isinstance(data, PrepareSpec) and not data.training and data.sets == ["minerals"]
    assert data.tokenizer.model_dump()["path"] == found.paths.data / "tokenizer"
    fetch = added["datasets"].spec
    assert isinstance(fetch, FetchDatasetsSpec) and fetch.datasets == {"a/b": "main"}
    # Time is estimated by what is asked: so many documents of four choices.
    length = found.config.experiment.data.max_length
    assert resources.operations(found, spec) == 2 * found.config.shape.parameters * 4 * 7 * length

    report = found.jobs["report"].spec
    assert isinstance(report, ReportSpec) and {*report.utility} == {"named", "topics"}
    rows = (*report.entries, *report.later_requests)
    assert {row.model_id for row in rows if {*row.utility} == {"named", "topics"}} == models
    assert not any(row.utility for row in (*report.attacked, *report.repeats))
    files = {rows[0].utility["named"] / "evaluation.json", rows[0].utility["topics"] / "summary.json"}
    assert files <= {*found.jobs["report"].inputs}
    assert work.title(found, job) == "evaluate: retrain, named"
    assert work.title(found, plain.jobs["evaluation/retrain/mini-muse-requests"]) == "evaluate: retrain"


@pytest.mark.parametrize(
    ("utility", "message"),
    [
        (["mini"], ["mini.yaml", "family", "'tofu'", "lm_eval"]),
        (["nowhere"], ["utility[0]", "'nowhere'", "mini-wmdp"]),
        ([TOPICS | {"name": "mini-muse-requests"}], ["utility[0]", "'mini-muse-requests'", "taken"]),
        ([TOPICS, TOPICS], ["utility[1]", "'topics'", "taken"]),
        (["mini-wmdp"], ["mini-wmdp.yaml", "options.forget", "'instruments'"]),
        ([TOPICS | {"options": {"tasks": ["a"], "include_path": "no"}}], ["utility[0].options.include_path", "no'"]),
        ([TOPICS | {"options": {"tasks": ["a"], "limits": 3}}], ["utility[0].options.limits", "limit"]),
        ([TOPICS | {"splits": {"own": 3}}], ["utility[0].source", "'own'", "minerals"]),
        ([TOPICS | {"options": {"tasks": ["b"], "prepared": ["b"]}}], ["utility[0].source", "'b'", "minerals"]),
        (
            [QUESTIONS, TOPICS | {"options": {"tasks": ["a"], "datasets": {"a/b": "v2"}}}],
            ["utility[1].options.datasets.a/b", "'v2'", "'main'"],
        ),
    ],
)
def test_refusals_name_file_key_and_what_is_allowed(tmp_path: Path, utility: list[Any], message: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "mini-muse-requests", utility))
    (problem,) = caught.value.problems
    assert all(part in problem for part in message), problem


def test_a_reference_is_named_by_the_model_that_it_is_of(tmp_path: Path) -> None:
    """Of later requests, one after the other, that is the model before the request."""
    plan = Plan(load("mini-muse-requests"), tmp_path)
    titles = {name: work.title(plan, job) for name, job in plan.jobs.items() if name.startswith("reference/")}
    assert titles["reference/forget"] == "reference: log-probabilities of forget under target"
    title = titles["reference/npo.sust-3.seed-0.sust-3"]
    assert title == "reference: log-probabilities of sust-3 under npo.sust-2-seed-0"
