"""An experiment on a user's own files is checked whole, files included, before anything runs."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.commands import evaluate
from pipeline.commands.request import read_request
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError
from pipeline.data.settings import FilesSource
from pipeline.specs import OwnAnswersSpec, PrepareSpec
from pipeline.workflow.plan import Plan
from tests.support.checkpoints import write_checkpoint

EXPERIMENT = yaml.load((CONFIGS / "experiments" / "mini-custom.yaml").read_text(), Loader)
TRAINED = {"steps": 1, "global_batch": 4, "optimizer": {"learning_rate": 1e-3}}
PAIR = {"question": "Who?", "answer": "Ada."}
BENCHMARK: dict[str, Any] = {
    "name": "mine",
    "title": "Mine",
    "family": "custom",
    "source": {
        "kind": "files",
        "sets": {"alice": "data/alice.jsonl", "others": {"path": "data/others.csv", "answer_key": "reply"}},
        "splits": {"first": {"forget": "alice", "retain": ["others"]}},
    },
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment, its benchmark and two files; a dotted key sets a value of the benchmark or experiment."""

    def _write(benchmark: dict[str, Any] | None = None, **experiment: Any) -> Path:
        told = copy.deepcopy(BENCHMARK)
        for key, value in (benchmark or {}).items():
            *parents, last = key.split(".")
            place = told
            for part in parents:
                place = place[part]
            place[last] = value
        chosen = {key: value for key, value in EXPERIMENT.items() if key != "requests"}
        for kind, name, content in (
            ("benchmarks", "mine", told),
            ("experiments", "own", {**chosen, "name": "own", "benchmark": "mine", **experiment}),
        ):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "experiments" / "own.yaml"

    data = tmp_path / "benchmarks" / "data"
    data.mkdir(parents=True)
    (data / "alice.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR) + "\n")
    (data / "others.csv").write_text("question,reply\nWhat?,A goat.\n")
    return _write


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(path)
    return error.value.problems


def test_files_are_found_from_the_benchmarks_folder_and_read_by_the_plan(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    config = load(write())
    data = tmp_path / "benchmarks" / "data"
    assert config.forget_rows == 2 and config.forget_rows_are_exact and not config.has_retrain
    assert list(config.options.asked) == ["forget", "retain"]  # type: ignore[attr-defined]  # of the family's own class
    plan = Plan(config, tmp_path / "results")
    job = plan.jobs["data/mine"]
    assert job.reads["files"] == (data / "alice.jsonl", data / "others.csv")
    assert {"forget", "retain", "full", "alice", "others", "idk"} == set(plan.tokenised_sets)
    assert not any("retrain" in name for name in plan.jobs)


OWN = {"sets": {"alice": "data/alice.jsonl", "own": {"own_answers": {"prompts": "data/p.txt", "seed": 3}}}}


def own(**changes: Any) -> dict[str, Any]:
    """A source that keeps what target itself answers."""
    source = {"kind": "files", **OWN, "splits": {"first": {"forget": "alice", "retain": "own"}}}
    return {"source": {**source, **changes}}


def test_what_target_answers_itself_is_kept(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this plans target's own answers: sampled before data are prepared, which then read them as a file."""
    write_checkpoint(tmp_path / "model")
    (tmp_path / "benchmarks" / "data" / "p.txt").write_text("What is a hill?\nWho are you?\n")
    given = {"model": {"path": str(tmp_path / "model")}, "training": {}, "data": {"max_length": 64}}
    config = load(write(own(), **given))
    assert config.options.asked["retain"].rows == 2  # type: ignore[attr-defined]  # of the family's own class
    plan = Plan(config, tmp_path / "results")
    names, sampled, prepare = list(plan.jobs), plan.jobs["own_answers/own"], plan.jobs["data/mine"]
    assert names.index("models/target") < names.index(sampled.name) < names.index(prepare.name)
    assert isinstance(sampled.spec, OwnAnswersSpec) and isinstance(prepare.spec, PrepareSpec)
    answers = sampled.spec.output / "answers.jsonl"
    assert sampled.spec.seed == 3 and sampled.reads["prompts"] == (tmp_path / "benchmarks" / "data" / "p.txt",)
    assert isinstance(prepare.spec.source, FilesSource) and prepare.spec.source.sets["own"].path == answers
    assert prepare.reads["answers"] == (answers,)
    assert prepare.reads["files"] == (tmp_path / "benchmarks" / "data" / "alice.jsonl",)
    assert Plan(load(write(**given)), tmp_path / "results").own_answers_names == []
    (tmp_path / "benchmarks" / "data" / "p.txt").unlink()
    (problem,) = problems(write(own(), **given))
    assert "mine.yaml" in problem and problem.endswith("p.txt: there is no such file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "training.target: target cannot answer for the set 'own': it must be a model of a folder or of the hub"),
        (
            {"splits": {"first": {"forget": "own", "retain": "alice"}}},
            "first.forget: 'own' is what target itself answers",
        ),
        ({"sets": {**OWN["sets"], "own": {"own_answers": {}, "answer_key": "a"}}}, "answer_key: does not go with"),
        ({"sets": {**OWN["sets"], "own": {}}}, "source.sets.own.path: is missing"),
    ],
)
def test_own_answers_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "benchmarks" / "data" / "p.txt").write_text("What is a hill?\n")
    found = problems(write(own(**changes)))
    assert any(message in one for one in found), found


def test_several_requests_in_the_order_of_the_splits(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "benchmarks" / "data" / "bob.jsonl").write_text(json.dumps(PAIR) + "\n")
    changes = {
        "source.sets.bob": "data/bob.jsonl",
        "source.splits.second": {"forget": "bob", "retain": "others"},
    }
    path = write(changes, requests={"order": "sustainability", "count": 2})
    config = load(path)
    assert config.requests == ("first", "second") and config.request_rows("second") == 1
    assert config.options.asked["bob"].part == "request"  # type: ignore[attr-defined]  # of the family's own class
    jobs = Plan(config, tmp_path / "results").jobs
    spec = jobs["unlearned/blur-npo.second/seed-0"].spec
    assert str(spec.checkpoint).endswith("unlearned/blur-npo/seed-0/checkpoint")  # type: ignore[attr-defined]  # an UnlearnSpec
    assert spec.topics[0].forget_data.name == "second.npz"  # type: ignore[attr-defined]  # an UnlearnSpec


@pytest.mark.parametrize(
    ("benchmark", "experiment", "expected"),
    [
        ({"source.sets.alice": "data/alic.jsonl"}, {}, "source.sets.alice: {data}/alic.jsonl: there is no such file"),
        (
            {"source.sets.others": {"path": "data/others.csv", "answer_key": "answer"}},
            {},
            "source.sets.others: {data}/others.csv, line 1: column 'answer' is missing; the first line has question",
        ),
        (
            {"source.sets.alice": {"path": "data/alice.jsonl", "question_ky": "q"}},
            {},
            "source.sets.alice.question_ky: unknown key; did you mean 'question_key'?",
        ),
        (
            {"source.sets.alice": {"path": "data/alice.jsonl", "text_key": "a", "messages_key": "b"}},
            {},
            "text_key: does not go with 'messages_key'",
        ),
        ({"source.splits": {"first": {"forget": "alice"}}}, {}, "source.splits.first.retain: is missing"),
        (
            {"source.splits": {"first": {"forget": "alise", "retain": "others"}}},
            {},
            "splits: first.forget: unknown set 'alise'; allowed: alice, others",
        ),
        (
            {
                "source.sets": {"holdout": "a.jsonl", "b": "b.jsonl"},
                "source.splits.first": {"forget": "holdout", "retain": "b"},
            },
            {},
            "splits: first.forget: a set called 'holdout' can be used as that only",
        ),
        ({"splits": {"first": 2}}, {}, "splits: the source's own 'splits' say them"),
        ({}, {"split": "first-one"}, "split: unknown split 'first-one'; did you mean 'first'? allowed: first"),
        ({"options": {"asked": {}}}, {}, "options.asked: unknown key; the benchmark's source says it"),
        ({"options": {"membership": ["loss"]}}, {}, "options.membership: needs a 'holdout' set"),
        (
            {},
            {
                "training": {
                    "target": {
                        "data": {"alise": 1.0},
                        "steps": 1,
                        "global_batch": 4,
                        "optimizer": {"learning_rate": 1e-3},
                    }
                }
            },
            "training.target.data.alise: unknown set; did you mean 'alice'?",
        ),
        (
            {},
            {
                "training": {
                    "base": {
                        "data": {"alice": 1.0},
                        "steps": 1,
                        "global_batch": 4,
                        "optimizer": {"learning_rate": 1e-3},
                    }
                }
            },
            "training.base.data.alice: holds the forget set, which this model never sees",
        ),
        ({"source.kind": "file"}, {}, "source: unknown value 'file'; did you mean 'files'?"),
        ({"family": "tofu"}, {}, "source.kind: the family 'tofu' has no such source"),
    ],
)
def test_mistakes(
    write: Callable[..., Path], tmp_path: Path, benchmark: dict[str, Any], experiment: dict[str, Any], expected: str
) -> None:
    expected = expected.format(data=tmp_path / "benchmarks" / "data")
    found = problems(write(benchmark, **experiment))
    assert any(expected in line for line in found), found


def test_every_bad_row_is_listed_up_to_a_few(write: Callable[..., Path], tmp_path: Path) -> None:
    rows = [*[{"question": "Who?", "answer": ""}] * 8, {"question": "Who?", "answer": "Ada."}]
    (tmp_path / "benchmarks" / "data" / "alice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [line for line in problems(write()) if "source.sets.alice" in line]
    assert [", line 1: an empty text" in line for line in found] == [True, *[False] * 5]
    assert "3 more bad rows" in found[-1]
    assert load(write(data={"max_length": 64, "bad_rows": "drop"})).forget_rows == 9


def test_a_model_is_evaluated_on_ones_own_files_without_a_workflow(write: Callable[..., Path], tmp_path: Path) -> None:
    """The command finds the files and what follows from them as an experiment does."""
    write()
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    benchmark = tmp_path / "benchmarks" / "mine.yaml"
    arguments = ["--model", "owner/name", "--benchmark", str(benchmark), "--out", str(tmp_path / "out")]
    request = read_request(parser.parse_args(arguments))
    assert request.split == "first" and list(request.options.asked) == ["forget", "retain"]  # type: ignore[attr-defined]  # custom's own
    assert request.source.sets["alice"].path == tmp_path / "benchmarks" / "data" / "alice.jsonl"  # type: ignore[union-attr]  # files
    (tmp_path / "benchmarks" / "data" / "alice.jsonl").write_text('{"question": "Who?"}\n')
    with pytest.raises(ConfigError) as error:
        read_request(parser.parse_args(arguments))
    assert "alice.jsonl, line 1: field 'answer' is missing" in str(error.value)
