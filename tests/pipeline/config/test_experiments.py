"""Shipped experiments that must say the same."""

from __future__ import annotations

import yaml

from pipeline.config.load import CONFIGS


def test_mini_seeds_is_mini_with_more_seeds() -> None:
    """README shows its table as mini's mean and spread."""
    once, thrice = (
        yaml.safe_load((CONFIGS / "experiments" / f"{name}.yaml").read_text()) for name in ("mini", "mini-seeds")
    )
    assert (thrice.pop("name"), thrice.pop("seeds")) == ("mini-seeds", [0, 1, 2])
    assert {key: value for key, value in once.items() if key != "seeds"} == {
        **thrice,
        "name": "mini",
        "title": once["title"],
    }
