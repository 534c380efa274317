"""Mistral and Zephyr."""

from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.base import Family


class Mistral(Family):
    """Sliding-window attention equals full attention up to the window's length, which bounds the context here."""

    architectures = ("MistralForCausalLM",)

    @classmethod
    def context(cls, config: Mapping[str, Any]) -> int:
        return min(int(config["max_position_embeddings"]), int(config.get("sliding_window") or 1 << 30))
