"""What specifications say of models, and what they refuse."""

from __future__ import annotations

import pytest

from pipeline.specs import ModelId

ATTACKS = ("relearn", "relearn-seed-3", "int4", "fine.int4")
REQUESTS = ("sust-2", "scal-3")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (ModelId("target"), "target"),
        (ModelId("target", attack="relearn-seed-3"), "target.relearn-seed-3"),
        (ModelId("npo", 0), "npo-seed-0"),
        (ModelId("npo-beta-0.1", 12), "npo-beta-0.1-seed-12"),
        (ModelId("npo-seed-1", 0), "npo-seed-1-seed-0"),
        (ModelId("npo", 0, attack="fine.int4"), "npo-seed-0.fine.int4"),
        (ModelId("npo.v2", 3, request="sust-2"), "npo.v2.sust-2-seed-3"),
        (ModelId("npo", request="scal-3"), "npo.scal-3"),
    ],
)
def test_a_models_text_says_which_it_is(model: ModelId, text: str) -> None:
    assert str(model) == text
    assert ModelId.parse(text, ATTACKS, REQUESTS) == model


def test_the_model_before_an_attack() -> None:
    attacked = ModelId("npo", 0, attack="int4", request="sust-2")
    assert str(attacked.before) == "npo.sust-2-seed-0" and attacked.run_folder == "npo.sust-2"
    assert attacked.before.before == attacked.before
