"""What is asked about a user's sets, and the metrics by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from megatron_ext.inference.generation import GenerateRequest
from megatron_ext.inference.scoring import Score, ScoreRequest, Tokenwise
from pipeline.benchmarks.custom.evaluate import FAMILY
from pipeline.benchmarks.custom.options import CustomOptions
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenizer import Tokenizer, train


def options(asked: dict[str, tuple[str, str]], **more: Any) -> CustomOptions:
    """``asked``: by set its form and part."""
    given = {name: {"form": form, "part": part, "rows": 2} | more.pop(name, {}) for name, (form, part) in asked.items()}
    return CustomOptions.model_validate({"asked": given, **more})


QA = {"forget": ("questions", "forget"), "retain": ("questions", "retain")}


def example(name: str, index: int, generation: str | None, correct: Sequence[bool] = (), **probabilities: float) -> Any:
    """Raw results for the answer "Ana Lima", whose targets have two tokens and the given probability per token."""
    scores: dict[str, Any] = {
        key: {"log_prob": 2 * math.log(p), "tokens": 2, "avg_loss": -math.log(p)} for key, p in probabilities.items()
    }
    for score in scores.values():
        score["correct"] = [*correct, True]
        score["log_probs"] = [*([score["log_prob"] / 2] * len(correct)), 0.0]
    texts = {"question": "Who?", "answer": "Ana Lima"}
    return {"set": name, "index": index, **texts, "scores": scores, "generation": generation}


def test_every_metric_of_questions_by_hand() -> None:
    found = FAMILY.compute_metrics(
        [
            example("forget", 0, "Ana Lima", [True, True], answer=0.9),
            example("forget", 1, "", [False, True], answer=0.1),
            example("retain", 0, "Ana", [True, False], answer=0.5),
            example("retain", 1, "no no", [False, False], answer=0.5),
        ],
        options(QA),
    )
    assert found == pytest.approx(
        {
            "forget_probability": 0.5,
            "forget_rouge": 0.5,
            "forget_perplexity": 1 / math.sqrt(0.9 * 0.1),
            "forget_extraction_strength": (1 + 0.5) / 2,
            "forget_exact_memorisation": (1 + 0.5) / 2,
            "retain_probability": 0.5,
            "retain_rouge": 0.25,
            "retain_perplexity": 2.0,
            "retain_extraction_strength": 0.5,
            "retain_exact_memorisation": 0.25,
            "empty_generations": 0,
            "repetitive_generations": 0,
        }
    )


def test_truth_ratio_cloze_holdout_and_texts_by_hand() -> None:
    asked = {
        **QA,
        "forget_texts": ("texts", "forget"),
        "holdout": ("questions", "holdout"),
        "cloze": ("cloze", "forget"),
    }
    chosen = options(
        asked,
        forget={"perturbed": True, "paraphrased": True},
        retain={"perturbed": True},
        membership=["loss"],
        privleak=True,
        privleak_retrain_auc=0.5,
    )
    examples = [
        example("forget", 0, "Ana", [True], answer=0.9, paraphrased=0.5, perturbed_0=0.4, perturbed_1=0.1),
        example("retain", 0, "Ana Lima", [True], answer=0.8, perturbed_0=0.2),
        example("forget_texts", 0, "Ana Lima", [True, False], answer=0.25, rest=0.5),
        example("holdout", 0, None, [False], answer=0.3),
        example("cloze", 0, "ana  LIMA, and", answer=0.7),
        example("cloze", 1, "Lima", answer=0.1),
    ]
    found = FAMILY.compute_metrics(examples, chosen, examples)
    expected = {
        "forget_quality": 1.0,
        "forget_truth_ratio": math.sqrt(0.4 * 0.1) / 0.5,
        "retain_truth_ratio": 1 - 0.2 / 0.8,
        "forget_texts_rouge": 1.0,
        "forget_texts_perplexity": 4.0,
        "forget_texts_extraction_strength": 0.5,
        "holdout_probability": 0.3,
        "cloze_probability": 0.4,
        "cloze_accuracy": 0.5,
        "mia_loss": 1.0,
        "privleak": -100.0,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert "holdout_rouge" not in found
    assert list(found) == [metric.key for metric in FAMILY.metrics(chosen)]
    assert "forget_quality" not in FAMILY.compute_metrics(examples, chosen)
    better = {metric.key: metric.better for metric in FAMILY.metrics(chosen)}
    assert (better["forget_rouge"], better["retain_rouge"], better["retain_perplexity"]) == ("lower", "higher", "lower")
    assert better["forget_perplexity"] is None and better["forget_truth_ratio"] == "one"


def test_options_that_the_sets_do_not_allow() -> None:
    with pytest.raises(ValidationError, match="membership: needs a 'holdout' set"):
        options(QA, membership=["loss"])
    with pytest.raises(ValidationError, match="privleak: needs a 'holdout' set"):
        options({**QA, "holdout_texts": ("texts", "holdout")}, privleak=True)


class Echo:
    """A model that knows every text: it continues a prompt as the row does, and finds each token the most likely."""

    rank, context = 0, 64

    def __init__(self, tokenizer: Tokenizer, known: dict[tuple[int, ...], list[int]]) -> None:
        self.tokenizer, self.known = tokenizer, known

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        def tokenwise(count: int) -> Tokenwise:
            return Tokenwise([-0.5] * count, [-1.0] * count, [1.0] * count, [True] * count)

        return [
            Score(-0.5 * len(r.target), len(r.target), True, tokenwise(len(r.target)) if r.tokenwise else None)
            for r in requests
        ]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[int]]:
        return [self.known[tuple(request.prompt)][: request.max_new_tokens] for request in requests]

    def gradient_norms(self, requests: Sequence[ScoreRequest]) -> list[float]:
        return [1.0 for _ in requests]


def test_pieces_of_text_are_continued_from_their_middle(tmp_path: Path) -> None:
    """Of more pieces than are asked for, some spread evenly; each shows what should follow and what does."""
    made = train(["Ada lives in Turin and keeps a goat."], 300, TEMPLATES["plain"], tmp_path / "tokenizer")
    ids = made.encode("Ada lives in Turin and keeps a goat.", special=True)
    (tmp_path / "evaluation").mkdir()
    for name, count in (("forget_texts", 10), ("retain_texts", 1)):
        rows = [{"index": i, "document": "a.txt", "ids": ids, "given": 1} for i in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "evaluation" / f"{name}.jsonl").write_text(text)
    chosen = options(
        {"forget_texts": ("texts", "forget"), "retain_texts": ("texts", "retain")}, pieces=3, max_new_tokens=4
    )
    middle = len(ids) // 2
    echo = Echo(made, {tuple(ids[:middle]): ids[middle:]})
    examples = FAMILY.requests(tmp_path, chosen, made, made.vocab_size)(echo)
    assert [(e["set"], e["index"]) for e in examples] == [
        ("forget_texts", 0),
        ("forget_texts", 3),
        ("forget_texts", 6),
        ("retain_texts", 0),
    ]
    first = examples[0]
    assert first["question"] == made.decode(ids[:middle])
    assert first["answer"] == first["generation"] == made.decode(ids[middle : middle + 4]).strip()
    assert (
        first["scores"]["answer"]["tokens"] == len(ids) - 1 and first["scores"]["rest"]["tokens"] == len(ids) - middle
    )
    found = FAMILY.compute_metrics(examples, chosen)
    assert found["forget_texts_rouge"] == found["forget_texts_extraction_strength"] == 1.0
    assert found["forget_texts_perplexity"] == pytest.approx(math.exp(0.5))
    assert FAMILY.judged(chosen) == {"forget": "forget_texts", "retain": "retain_texts"}
    assert FAMILY.trade_offs(chosen) == (("retain_texts_rouge", "forget_texts_rouge"),)
    assert FAMILY.collapse(examples, chosen, found) == []
