"""Mistral and Zephyr."""

from collections.abc import Mapping
from typing import Any, ClassVar

from megatron_ext.model.families.base import Family


class Mistral(Family):
    """Sliding-window attention equals full attention up to the window's length, which bounds the context here."""

    architectures = ("MistralForCausalLM",)
    defaults = {"num_key_value_heads": 8}
    window: ClassVar[int | None] = 4096  # of a config that says nothing of it; one without says null

    @classmethod
    def context(cls, config: Mapping[str, Any]) -> int:
        window = config.get("sliding_window", cls.window)
        return min(int(config["max_position_embeddings"]), int(window or 1 << 30))
