"""Qwen2.5 (a bias on queries, keys and values), Qwen3 and Qwen3-MoE (a norm on each head's queries and keys)."""

from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families.base import Experts, Family
from megatron_ext.model.families.sizes import check_experts


class _Qwen(Family):
    @classmethod
    def context(cls, config: Mapping[str, Any]) -> int:
        window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
        return min(int(config["max_position_embeddings"]), int(window or 1 << 30))


class Qwen2(_Qwen):
    architectures = ("Qwen2ForCausalLM",)
    defaults = {"num_key_value_heads": 32}
    qkv_bias = True


class Qwen3(_Qwen):
    architectures = ("Qwen3ForCausalLM",)
    defaults = {"num_key_value_heads": 32, "head_dim": 128}
    qk_norm = True


class Qwen3Moe(Qwen3):
    """Qwen3, with a mixture of experts in every layer."""

    architectures = ("Qwen3MoeForCausalLM",)
    defaults = {"num_key_value_heads": 4}
    torch_only = "mixtures of experts"

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        check_experts(config, ("num_experts", "num_local_experts"), "num_experts_per_tok", "moe_intermediate_size")
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise ValueError("mlp_only_layers, decoder_sparse_step: layers without experts are not supported")
        if not isinstance(config.get("norm_topk_prob"), bool | None):
            raise ValueError(f"norm_topk_prob: {config['norm_topk_prob']!r:.60}; allowed: true, false")
        if config.get("attention_bias"):
            raise ValueError("attention_bias: true is not supported for Qwen3MoeForCausalLM")

    @classmethod
    def experts(cls, config: Mapping[str, Any]) -> Experts:
        return Experts(
            count=config.get("num_experts") or config["num_local_experts"],
            chosen=config["num_experts_per_tok"],
            width=config["moe_intermediate_size"],
            normalised=bool(config.get("norm_topk_prob")),
            router="mlp.gate.weight",
            gate="mlp.experts.{}.gate_proj.weight",
            up="mlp.experts.{}.up_proj.weight",
            down="mlp.experts.{}.down_proj.weight",
        )
