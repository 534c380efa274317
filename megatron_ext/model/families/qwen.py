"""Qwen2.5 (a bias on the query, key and value projections) and Qwen3 (a norm on each head's queries and keys)."""

from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.base import Family


class _Qwen(Family):
    @classmethod
    def context(cls, config: Mapping[str, Any]) -> int:
        window = int(config.get("sliding_window") or 1 << 30) if config.get("use_sliding_window") else 1 << 30
        return min(int(config["max_position_embeddings"]), window)


class Qwen2(_Qwen):
    architectures = ("Qwen2ForCausalLM",)
    qkv_bias = True


class Qwen3(_Qwen):
    architectures = ("Qwen3ForCausalLM",)
    qk_norm = True
