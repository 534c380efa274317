"""Phi-3, Phi-3.5 and Phi-4, without images and experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.base import ORIGINAL, Family, rope_parameters
from megatron_ext.model.families.sizes import positive


class Phi3(Family):
    """Phi-3, Phi-3.5 and Phi-4.

    The context here ends where attention would no longer be full (``sliding_window``), and where a model with
    long-rope scaling would change its frequencies (``original_max_position_embeddings``).
    """

    architectures = ("Phi3ForCausalLM",)
    scalings = ("default", "longrope")
    fused = True

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        if config.get("attention_bias"):
            raise ValueError("attention_bias: true is not supported for Phi3ForCausalLM")
        size = cls.rotary_size(config)
        if size < 2 or size % 2:
            raise ValueError(f"partial_rotary_factor: leaves {size} numbers of a head; allowed: an even number")
        rope = rope_parameters(config)
        if rope["rope_type"] != "longrope":
            return
        for key in ("short_factor", "long_factor"):
            if not isinstance(rope[key], list) or len(rope[key]) != size // 2:
                raise ValueError(f"{key}: {rope[key]!r:.60}; allowed: a list of {size // 2} numbers")
            for value in rope[key]:
                positive(key, value)
        original = cls._original(config)
        if type(original) is not int or original < 2:
            raise ValueError(f"{ORIGINAL}: {original!r:.60}; allowed: a whole number from 2")
        for key in ("factor", "attention_factor"):
            if rope.get(key) is not None:
                positive(key, rope[key])

    @classmethod
    def rotary_size(cls, config: Mapping[str, Any]) -> int:
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        share = rope_parameters(config).get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        positive("partial_rotary_factor", share)
        return int(size * min(share, 1.0))

    @classmethod
    def rotary_gain(cls, config: Mapping[str, Any]) -> float:
        """transformers multiplies sine and cosine by it: that of ``_compute_longrope_parameters``."""
        rope = rope_parameters(config)
        if rope["rope_type"] != "longrope":
            return 1.0
        if rope.get("attention_factor") is not None:
            return float(rope["attention_factor"])
        original = cls._original(config)
        factor = rope.get("factor") or config["max_position_embeddings"] / original
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0

    @classmethod
    def context(cls, config: Mapping[str, Any]) -> int:
        bounds = [int(config["max_position_embeddings"]), int(config.get("sliding_window") or 1 << 30)]
        if rope_parameters(config)["rope_type"] == "longrope":
            bounds.append(cls._original(config))
        return min(bounds)

    @classmethod
    def _original(cls, config: Mapping[str, Any]) -> int:
        """The config's own number: transformers reads none of the scaling."""
        given: int = config.get(ORIGINAL, 4096)
        return given
