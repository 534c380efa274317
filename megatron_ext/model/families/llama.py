"""Llama 2 and 3.x."""

from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.base import Family


class Llama(Family):
    architectures = ("LlamaForCausalLM",)

    @classmethod
    def has_qkv_bias(cls, config: Mapping[str, Any]) -> bool:
        if config.get("attention_bias"):
            raise ValueError("attention_bias: true (a bias on o_proj too) is not supported for LlamaForCausalLM")
        return False
