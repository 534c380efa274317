"""Jobs of the benchmark family ``lm_eval``: several topics, and data sets that are fetched for the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.specs import FetchDatasetsSpec
from pipeline.workflow.plan import Plan
from pipeline.workflow.unlearning_jobs import references


@pytest.fixture(scope="module")
def wmdp() -> Plan:
    return Plan(load("wmdp-zephyr-7b"), Path("out"))


def test_topics_take_turns_each_with_its_own_sets_and_references(wmdp: Plan) -> None:
    train = wmdp.paths.data / "train"
    for name in ("npo", "rmu-wmdp"):
        job = wmdp.jobs[f"unlearned/{name}/seed-0"]
        assert [(topic.name, topic.forget_data, topic.retain_data) for topic in job.spec.topics] == [
            (topic, train / f"forget_{topic}.npz", train / f"retain_{topic}.npz") for topic in ("bio", "cyber")
        ]
        wanted = [wmdp.paths.reference(f"forget_{topic}") if name == "npo" else None for topic in ("bio", "cyber")]
        assert [topic.reference_logps for topic in job.spec.topics] == wanted
        files = [path for t in job.spec.topics for path in (t.forget_data, t.retain_data, t.reference_logps) if path]
        assert set(files) <= set(job.inputs)
    assert references(wmdp.config) == ["forget_bio", "forget_cyber"]
    assert wmdp.tokenised_sets == [
        "full",
        "forget",
        "retain",
        "forget_bio",
        "retain_bio",
        "forget_cyber",
        "retain_cyber",
    ]


def test_one_topic_is_called_forget() -> None:
    plan = Plan(load("mini-wmdp"), Path("out"))
    (topic,) = plan.jobs["unlearned/rmu/seed-0"].spec.topics
    assert (topic.name, topic.forget_data) == ("forget", plan.paths.tokens("forget"))
    assert plan.tokenised_sets == ["full", "forget", "retain"] and not plan.fetches_datasets
    assert plan.paths.data / "evaluation" / "instruments.jsonl" in plan.jobs["evaluation/target/mini-wmdp"].inputs


def test_data_sets_of_tasks_are_fetched_before_an_evaluation(wmdp: Plan) -> None:
    job = wmdp.jobs["datasets"]
    assert isinstance(job.spec, FetchDatasetsSpec) and job.spec.datasets == {"cais/wmdp": "main", "cais/mmlu": "main"}
    manifest = Path("out/wmdp-zephyr-7b/datasets/manifest.json")
    evaluations = [job for name, job in wmdp.jobs.items() if name.startswith("evaluation/")]
    assert evaluations and all(manifest in evaluation.inputs for evaluation in evaluations)
    assert wmdp.fetches_datasets and wmdp.evaluation_sets == []
