"""Several requests to forget in a plan: which model each starts from, what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from megatron_ext.specs import AlternativesSpec, ModelSource, ReferenceSpec, TrainSpec, UnlearnSpec
from pipeline.config.experiment import Config, data_files
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.data.prepared import Names
from pipeline.specs import EvaluateSpec, FetchSpec, PrepareSpec, ReportSpec
from pipeline.workflow.plan import Plan
from pipeline.workflow.unlearning_jobs import references, unlearning_steps

ROOT = Path("out/mini-muse-requests")


def plan(folder: Path, name: str = "mini-muse-requests", **changes: Any) -> Plan:
    content = yaml.load((CONFIGS / "experiments" / f"{name}.yaml").read_text(), Loader) | changes
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(content))
    return Plan(load(path), Path("out"))


def refused(folder: Path, name: str = "mini-muse-requests", **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(folder, name, **changes)
    return str(caught.value)


def unlearned(found: Plan) -> dict[str, UnlearnSpec]:
    return {job.name: job.spec for job in found.jobs.values() if isinstance(job.spec, UnlearnSpec)}


def checkpoint(name: str) -> Path:
    return ROOT / name / "checkpoint"


def test_one_after_the_other(tmp_path: Path) -> None:
    found = plan(tmp_path)
    specs = unlearned(found)
    for method in ("graddiff", "npo"):
        starts = [checkpoint("models/target"), checkpoint(f"unlearned/{method}/seed-0")]
        starts += [checkpoint(f"unlearned/{method}.sust-{k}/seed-0") for k in (2, 3)]
        names = [f"unlearned/{method}/seed-0", *(f"unlearned/{method}.sust-{k}/seed-0" for k in (2, 3, 4))]
        assert [specs[name].checkpoint for name in names] == starts
        sets = [specs[name].topics[0].forget_data for name in names]
        assert sets == [found.paths.tokens(name) for name in ("forget", "sust-2", "sust-3", "sust-4")]
        assert {specs[name].topics[0].retain_data for name in names} == {found.paths.tokens("retain")}
    # Log-probabilities are those of the model that the request starts from.
    for k, start in ((2, "unlearned/npo/seed-0"), (3, "unlearned/npo.sust-2/seed-0")):
        spec = specs[f"unlearned/npo.sust-{k}/seed-0"]
        reference = next(
            job.spec
            for job in found.jobs.values()
            if isinstance(job.spec, ReferenceSpec)
            and job.spec.output / "reference.npz" == spec.topics[0].reference_logps
        )
        assert (reference.checkpoint, reference.data) == (checkpoint(start), found.paths.tokens(f"sust-{k}"))
    assert all(specs[f"unlearned/graddiff.sust-{k}/seed-0"].topics[0].reference_logps is None for k in (2, 3, 4))


def test_growing(tmp_path: Path) -> None:
    found = plan(tmp_path, requests={"order": "scalability", "count": 3})
    specs = unlearned(found)
    assert {spec.checkpoint for spec in specs.values()} == {checkpoint("models/target")}
    assert [unlearning_steps(found.config, specs[f"unlearned/npo{k}/seed-0"]) for k in ("", ".scal-2", ".scal-3")] == [
        40,
        80,
        120,
    ]
    assert references(found.config) == ["forget", "scal-2", "scal-3"]
    assert specs["unlearned/npo.scal-3/seed-0"].topics[0].reference_logps == found.paths.reference("scal-3")


@pytest.mark.parametrize("kind", ["sustainability", "scalability"])
def test_every_input_is_written_by_an_earlier_job(kind: str, tmp_path: Path) -> None:
    found = plan(tmp_path, requests={"order": kind, "count": 4}, seeds=[0, 1])
    written: list[Path] = []
    for job in found.jobs.values():
        for path in job.inputs:
            assert any(folder in path.parents for folder in written), (job.name, path)
        written.append(job.spec.output)
    assert len(set(written)) == len(written)
    prepare = next(job.spec for job in found.jobs.values() if isinstance(job.spec, PrepareSpec))
    assert prepare.requests == list(found.config.requests[1:]) and set(prepare.requests) < set(found.tokenised_sets)
    # The rules find each job by a run and a seed, a model, or a set.
    runs = {name.split("/")[1] for name in unlearned(found)}
    assert runs == set(found.run_folders)
    names = [job.spec.output.name for job in found.jobs.values() if isinstance(job.spec, ReferenceSpec)]
    assert names == found.reference_names


def test_all_requests_are_evaluated_on_the_same_data(tmp_path: Path) -> None:
    found = plan(tmp_path)
    specs = [job.spec for job in found.jobs.values() if isinstance(job.spec, EvaluateSpec)]
    assert len(specs) == 2 + 2 * 4 and len({(spec.data, spec.split) for spec in specs}) == 1
    assert all(spec.options.requests == 4 for spec in specs)
    prepare = next(job.spec for job in found.jobs.values() if isinstance(job.spec, PrepareSpec))
    assert {"request_2", "request_3", "request_4"} < set(prepare.sets)
    assert {spec.retain_evaluation for spec in specs if spec.model_id != "retrain"} == {
        ROOT / "evaluation" / "retrain" / "mini-muse-requests"
    }


def test_the_report_has_further_requests_apart(tmp_path: Path) -> None:
    found = plan(tmp_path, seeds=[0, 1])
    spec = found.jobs["report"].spec
    assert isinstance(spec, ReportSpec) and spec.requests == "sustainability"
    assert [entry.model_id for entry in spec.entries] == [
        "target",
        "retrain",
        *(f"{method}-seed-{seed}" for method in ("graddiff", "npo") for seed in (0, 1)),
    ]
    assert len(spec.later_requests) == 2 * 2 * 3
    for entry in spec.later_requests:
        own = f"{entry.method}.sust-{entry.request}"
        assert entry.model_id == f"{own}-seed-{entry.seed}"
        assert found.jobs[f"unlearned/{own}/seed-{entry.seed}"].spec.output == entry.run
        assert found.jobs[f"evaluation/{entry.model_id}/mini-muse-requests"].spec.output == entry.evaluation
    shown = {path.parent for path in found.jobs["report"].inputs}
    assert {entry.run for entry in spec.later_requests} | {entry.evaluation for entry in spec.later_requests} < shown


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    both = {"order": "sustainability", "count": 2}
    message = refused(tmp_path, "mini", requests=both, split="forget10")
    assert "requests.count: 2; the family 'tofu' has 1 from 'forget10' on" in message
    message = refused(tmp_path, "mini-wmdp", requests=both)
    assert "requests.count: 2; the family 'lm_eval' has 1 from 'instruments' on" in message
    assert "requests.count: 5; the family 'muse' has 4" in refused(
        tmp_path, requests={"order": "scalability", "count": 5}
    )
    message = refused(tmp_path, "mini-muse", requests={"order": "sustainability", "count": 2})
    assert "requests.count: 2; the source of 'mini-muse' makes no 'sust-2'" in message
    assert "split: 'sust-2'; the first of several requests is 'forget'" in refused(tmp_path, split="sust-2")
    message = refused(tmp_path, methods=["idk-dpo"])
    assert "preferred_answers: the family 'muse' has no set 'idk' of preferred answers" in message
    assert "requests.order" in refused(tmp_path, requests={"order": "sequential"})


def mapping(name: str, **changes: Any) -> dict[str, Any]:
    """A shipped benchmark as an experiment holds it, with changes."""
    content: dict[str, Any] = yaml.load((CONFIGS / "benchmarks" / f"{name}.yaml").read_text(), Loader)
    return content | {"published": []} | changes


@pytest.mark.parametrize("order", ["sustainability", "scalability"])
def test_each_request_has_preferred_answers_of_its_own(order: str, tmp_path: Path) -> None:
    """Only this plans refusals and sampled answers for further requests, and their log-probabilities."""
    benchmark = mapping("mini", splits={"forget01": 20})
    methods, wanted = ["idk-dpo", "altpo"], {"order": order, "count": 2}
    found = plan(tmp_path, "mini", benchmark=benchmark, split="forget01", requests=wanted, methods=methods)
    later, idk = found.config.requests[1], f"idk.{found.config.requests[1]}"
    assert {"idk", idk} < set(found.tokenised_sets) and len(found.alternatives_names) == 2
    sampled = [found.jobs[f"alternatives/{name}"].spec for name in found.alternatives_names]
    assert [(spec.data.stem, spec.checkpoint) for spec in sampled if isinstance(spec, AlternativesSpec)] == [
        (name, Path("out/mini/models/target/checkpoint")) for name in ("forget", later)
    ]
    start = "models/target" if order == "scalability" else "unlearned/{}/seed-0"
    answers = {"idk-dpo": found.paths.tokens(idk), "altpo": sampled[1].output / "alternatives.npz"}
    specs = unlearned(found)
    for method, file in answers.items():
        (topic,) = specs[f"unlearned/{method}.{later}/seed-0"].topics
        assert topic.preferred_answers == file
        assert specs[f"unlearned/{method}/seed-0"].topics[0].preferred_answers != file
        made = [job.spec for job in found.jobs.values() if isinstance(job.spec, ReferenceSpec)]
        (own,) = (spec for spec in made if spec.output / "reference.npz" == topic.preferred_answers_logps)
        assert (own.data, own.checkpoint) == (file, Path("out/mini", start.format(method), "checkpoint"))


@pytest.mark.parametrize(
    ("order", "later", "steps", "relearned"),
    [
        ("sustainability", ["forget05-rest", "forget10-rest"], [30, 30, 50], 3),
        ("scalability", ["forget05", "forget10"], [30, 50, 100], 1),
    ],
)
def test_tofu_forgets_what_larger_splits_add(
    order: str, later: list[str], steps: list[int], relearned: int, tmp_path: Path
) -> None:
    """Only this plans TOFU's requests: their rows, the sets that measure them, and attacks after each."""
    relearn = {"share": 0.5, "steps": 5, "global_batch": 8, "optimizer": {"learning_rate": 1e-4}}
    changes = {"split": "forget01", "requests": {"order": order, "count": 3}, "methods": ["npo"]}
    benchmark = mapping("mini", splits={"forget01": 20})
    found = plan(tmp_path, "mini", benchmark=benchmark, robustness={"relearn": relearn}, **changes)
    specs = list(unlearned(found).values())
    assert found.config.requests == ("forget01", *later) and found.config.retrain_split == "forget10"
    assert [spec.topics[0].forget_data.stem for spec in specs] == ["forget", *later]
    assert [unlearning_steps(found.config, spec) for spec in specs] == steps
    starts = [spec.checkpoint.parent.parent.name for spec in specs]
    assert starts == (["models", "npo", f"npo.{later[0]}"] if relearned == 3 else ["models"] * 3)
    evaluations = [job.spec for job in found.jobs.values() if isinstance(job.spec, EvaluateSpec)]
    assert len(evaluations) == 2 * (2 + 3) and {"request_2", "request_3"} < {*found.evaluation_sets}
    attack = found.jobs[f"robustness/npo.{later[1]}-seed-0/relearn"].spec
    assert isinstance(attack, TrainSpec) and len(attack.data) == relearned
    message = refused(tmp_path, "mini", benchmark=benchmark, evaluation={"options": {"requests": 2}}, **changes)
    assert "evaluation.options.requests: unknown key; the experiment's 'requests' say it" in message


def test_a_published_retrain_has_seen_no_request(tmp_path: Path) -> None:
    """Only this asks which published model a metric compares with where several requests are forgotten."""
    changes = {"split": "forget01", "methods": ["npo"]}
    found = plan(tmp_path, "tofu-llama-3.2-1b", requests={"order": "scalability", "count": 2}, **changes)
    fetched = found.jobs["models/retrain"].spec
    assert isinstance(fetched, FetchSpec) and fetched.hub == "open-unlearning/tofu_Llama-3.2-1B-Instruct_retain95"
    requests = {"order": "sustainability", "count": 3}
    rest = plan(tmp_path, "tofu-llama-3.2-1b", requests=requests, **changes).config
    assert [rest.request_rows(name) for name in rest.requests] == [40, 160, 200]
    assert ("retain90",) in found_files(rest) and ("retain99",) not in found_files(rest)


def found_files(config: Config) -> list[Names]:
    return data_files(config.experiment, config.benchmark, ["forget"], training=True)


@pytest.mark.parametrize(("order", "last"), [("sustainability", "minerals"), ("scalability", "instruments-minerals")])
def test_topics_are_forgotten_one_after_another_and_one_is_kept(order: str, last: str, tmp_path: Path) -> None:
    """Only this plans requests of the family of WMDP."""
    source = {"kind": "synthetic_topics", "things": 24, "paragraphs": 2, "seed": 0, "topics": 3}
    benchmark = mapping("mini-wmdp", source=source)
    requests = {"order": order, "count": 2}
    found = plan(tmp_path, "mini-wmdp", benchmark=benchmark, requests=requests, methods=["npo"])
    specs = unlearned(found)
    assert [spec.topics[0].forget_data.stem for spec in specs.values()] == ["forget", last]
    assert found.config.request_rows(last) == (168 if order == "sustainability" else 336)
    refusal = refused(tmp_path, "mini-wmdp", benchmark=benchmark, requests={**requests, "count": 3})
    assert "requests.count: 3; the family 'lm_eval' has 2 from 'instruments' on" in refusal


@pytest.mark.parametrize(
    ("order", "relearned"), [("sustainability", ["forget", "sust-2", "sust-3"]), ("scalability", ["scal-3"])]
)
def test_the_model_after_each_request_is_attacked(order: str, relearned: list[str], tmp_path: Path) -> None:
    """Only this has both: each attack starts from its own model, and relearns all that this one was asked to forget."""
    relearn = {"share": 0.5, "steps": 5, "global_batch": 8, "optimizer": {"learning_rate": 1e-4}}
    requests = {"order": order, "count": 3}
    found = plan(tmp_path, requests=requests, robustness={"relearn": relearn, "quantise": ["int8"]}, methods=["npo"])
    last = f"npo.{order[:4]}-3-seed-0"
    job = found.jobs[f"robustness/{last}/relearn"].spec
    assert isinstance(job, TrainSpec) and isinstance(job.model, ModelSource)
    assert job.model.checkpoint == checkpoint(f"unlearned/npo.{order[:4]}-3/seed-0")
    assert list(job.data) == [str(found.paths.tokens(name)) for name in relearned]
    assert {f"evaluation/{last}.{attack}/mini-muse-requests" for attack in ("relearn", "int8")} < set(found.jobs)
    report = found.jobs["report"].spec
    assert isinstance(report, ReportSpec)
    entries = {entry.model_id: (entry.request, entry.attack) for entry in report.attacked}
    assert len(entries) == 2 * (2 + 3) and entries[f"{last}.int8"] == (3, "int8")
    if order == "sustainability":
        message = "robustness.relearn.global_batch: 2 is less than the 3 requests"
        assert message in refused(tmp_path, requests=requests, robustness={"relearn": {**relearn, "global_batch": 2}})
