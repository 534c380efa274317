"""YaRN's scaling of rotary embeddings (arXiv 2309.00071): its settings, and how much longer rotated numbers become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.sizes import positive


def check(rope: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a setting that is wrong; those that every scaling has are checked before."""
    for key in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
        if rope.get(key) is not None:
            positive(key, rope[key])
    if not isinstance(rope.get("truncate"), bool | None):
        raise ValueError(f"truncate: {rope['truncate']!r:.60}; allowed: true, false")


def gain(rope: Mapping[str, Any]) -> float:
    """What rotated numbers are multiplied by: that of transformers' ``_compute_yarn_parameters``."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor, every = float(rope["factor"]), rope.get("mscale_all_dim")
    if rope.get("mscale") and every:
        return magnitude(factor, rope["mscale"]) / magnitude(factor, every)
    return magnitude(factor)


def magnitude(factor: float, share: float = 1.0) -> float:
    """``1 + 0.1 share ln(factor)``; 1 where nothing is scaled."""
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0
