"""Shipped experiments that must say the same."""

from __future__ import annotations

import yaml

from megatron_ext.schema.safe_yaml import Loader
from pipeline.config.load import CONFIGS


def test_mini_seeds_is_mini_with_more_seeds() -> None:
    """README shows its table as mini's mean and spread."""
    once, thrice = (
        yaml.load((CONFIGS / "experiments" / f"{name}.yaml").read_text(), Loader) for name in ("mini", "mini-seeds")
    )
    assert thrice.pop("seeds") == [0, 1, 2]
    for key in ("name", "title"):
        assert thrice.pop(key) != once.pop(key)
    assert once.pop("seeds") == [0]
    assert thrice == once
