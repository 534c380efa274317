"""The step that lets a model answer general prompts, with an engine that stands for a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.config import Runtime
from megatron_ext.inference.generation import GenerateRequest
from pipeline.benchmarks import megatron_lm as engine
from pipeline.data.errors import DataError
from pipeline.data.general_prompts import PROMPTS
from pipeline.data.json_files import read_rows
from pipeline.data.templates import Template
from pipeline.data.tokenizer import Tokenizer, train
from pipeline.specs import OwnAnswersSpec
from pipeline.steps.own_answers import answer


class Engine(engine.Engine):
    """Says the prompt again, or nothing where it is asked about whales."""

    def find_continuations(self, requests: Any) -> list[list[int]]:
        self.requests: list[GenerateRequest] = list(requests)
        texts = [self.tokenizer.decode(request.prompt) for request in requests]
        return [[] if "whales" in t else r.prompt[: r.max_new_tokens] for t, r in zip(texts, requests, strict=True)]

    def find_scores(self, requests: Any) -> Any:
        raise AssertionError("nothing is scored")

    gradient_norms = find_scores


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    train(PROMPTS, 400, Template.of("plain"), tmp_path / "model")
    return {"checkpoint": tmp_path / "model", "template": "plain", "max_length": 512, "output": tmp_path / "out"}


def run(told: dict[str, Any], rank: int = 0) -> tuple[int | None, Engine]:
    made = Engine(rank, Tokenizer.load(told["checkpoint"]), 512)

    @contextmanager
    def opened(checkpoint: Path, runtime: Runtime, *rest: Any) -> Iterator[Engine]:
        yield made

    return answer(OwnAnswersSpec(**told), open_engine=opened), made


def test_every_general_prompt_is_answered(told: dict[str, Any]) -> None:
    """Only this makes rows of sampled answers: one for each prompt and draw, without those that are empty."""
    told["per_row"] = 2
    count, made = run(told)
    rows = read_rows(told["output"] / "answers.jsonl")
    silent = sum("whales" in prompt for prompt in PROMPTS)
    assert silent and count == len(rows) == 2 * (len(PROMPTS) - silent)
    assert [row["question"] for row in rows[:4]] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert all(row.keys() == {"question", "answer"} and row["answer"] for row in rows)
    seeds = {request.sampling.seed for request in made.requests if request.sampling}
    assert len(seeds) == 2 and all(request.max_new_tokens <= 64 for request in made.requests)
    summary = json.loads((told["output"] / "summary.json").read_text())
    assert (summary["rows"], summary["dropped"]) == (count, 2 * silent)
    assert summary["flags"] == [f"{2 * silent} of {2 * len(PROMPTS)} own answers dropped"]
    other = told["output"] / "other"
    assert run({**told, "output": other}, rank=1)[0] is None and not other.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "Who are you?\n\nWhat is a hill?\n"),
        ("p.jsonl", '{"prompt": "Who are you?"}\n{"question": "What is a hill?"}\n'),
    ],
)
def test_prompts_of_a_users(told: dict[str, Any], name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    run({**told, "prompts": tmp_path / name})
    asked = [row["question"] for row in read_rows(told["output"] / "answers.jsonl")]
    assert asked == ["Who are you?", "What is a hill?"]


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("\n", {}, "p.txt: no prompts"),
        ("Tell me of whales.\n", {}, "model: all of its 1 answers are empty or too long"),
        ("What is a hill?\n", {"max_length": 8}, "p.txt, line 1: .* tokens leave no room for an answer"),
    ],
)
def test_what_cannot_be_answered_is_named(
    told: dict[str, Any], content: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        run({**told, "prompts": tmp_path / "p.txt", **changes})
