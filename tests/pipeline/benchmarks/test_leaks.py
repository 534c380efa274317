"""leak@k by hand, and what it asks a model in each family."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from pydantic import ValidationError

from megatron_ext.inference.generation import GenerateRequest
from pipeline.benchmarks import leaks
from pipeline.benchmarks.custom.options import CustomOptions
from pipeline.benchmarks.leaks import LeakOptions
from pipeline.data.errors import DataError
from pipeline.metrics.aggregate import any_of


@pytest.mark.parametrize("held", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_the_estimator_is_the_share_of_all_choices_of_k(held: int, k: int) -> None:
    choices = list(combinations([True] * held + [False] * (5 - held), k))
    assert any_of(5, held, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-15)


def test_by_hand() -> None:
    options = LeakOptions(k=[1, 2, 3], samples=3, holds=0.5)
    rows = [["Ana Lima", "Lima, surely", "nobody"], ["a drum", "", "bells"]]
    answers = ["Ana Lima", "the red bell"]
    examples = [
        {"set": "forget", "index": i, "answer": answer, "drawn": drawn}
        for i, (answer, drawn) in enumerate(zip(answers, rows, strict=True))
    ]
    found = leaks.compute(options, "forget", examples)
    assert found == pytest.approx({"forget_leak_at_1": 1 / 3, "forget_leak_at_2": 0.5, "forget_leak_at_3": 0.5})
    strict = leaks.compute(options.model_copy(update={"holds": 1.0}), "forget", examples)
    assert strict == pytest.approx({"forget_leak_at_1": 1 / 6, "forget_leak_at_2": 1 / 3, "forget_leak_at_3": 0.5})
    assert [metric.key for metric in leaks.catalogue(options, {"forget": "Forget"})] == list(found)
    with pytest.raises(DataError, match=r"has not 3 sampled answers"):
        leaks.compute(options, "forget", [{**examples[0], "drawn": ["one"]}])
    assert leaks.compute(None, "forget", []) == {} and leaks.catalogue(None, {"forget": "Forget"}) == []


def test_samples_differ_in_their_seeds_alone() -> None:
    asked = LeakOptions(temperature=0.7, top_p=0.9, top_k=40).drawn(GenerateRequest([1, 2], 5, ("end",)))
    ways = [request.sampling for request in asked if request.sampling is not None]
    assert {(way.temperature, way.top_p, way.top_k) for way in ways} == {(0.7, 0.9, 40)}
    assert len({way.seed for way in ways}) == 8
    assert {(tuple(request.prompt), request.max_new_tokens, request.stops) for request in asked} == {
        ((1, 2), 5, ("end",))
    }


@pytest.mark.parametrize(
    ("given", "key"),
    [({"k": [9]}, "k: "), ({"k": [0]}, "k: "), ({"k": [2, 2]}, "k: "), ({"temperature": 0.0}, "temperature")],
)
def test_numbers_out_of_bounds_are_named(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        LeakOptions(**given)


def test_texts_alone_cannot_leak_an_answer() -> None:
    asked = {"forget_texts": {"form": "texts", "part": "forget", "rows": 3}}
    with pytest.raises(ValidationError, match="leak: needs questions"):
        CustomOptions(asked=asked, leak=LeakOptions())
