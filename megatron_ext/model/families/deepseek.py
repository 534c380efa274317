"""DeepSeek-V2-Lite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families import yarn
from megatron_ext.model.families.base import AttentionKind, Experts, Family, Latent, rope_parameters
from megatron_ext.model.families.sizes import MOST, check_experts, whole


class DeepseekV2(Family):
    """DeepSeek-V2-Lite: latent attention, shared experts, and layers without experts at the beginning."""

    architectures = ("DeepseekV2ForCausalLM",)
    scalings = ("default", "yarn")
    torch_only = "latent attention, mixtures of experts"

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        check_experts(config, ("n_routed_experts",), "num_experts_per_tok", "moe_intermediate_size")
        for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            whole(key, config.get(key), 1, MOST["head_dim"])
        if config["qk_rope_head_dim"] % 2:
            raise ValueError(f"qk_rope_head_dim: {config['qk_rope_head_dim']}; allowed: an even number")
        whole("n_shared_experts", config.get("n_shared_experts", 2), 1, MOST["num_attention_heads"])
        whole("first_k_dense_replace", config.get("first_k_dense_replace", 0), 0, config["num_hidden_layers"])
        if config.get("num_key_value_heads") not in (None, config["num_attention_heads"]):
            raise ValueError("num_key_value_heads: latent attention has as many as num_attention_heads")
        for key, allowed, what in (
            ("q_lora_rank", (None,), "low-rank queries"),
            ("topk_method", (None, "greedy"), "experts chosen in groups"),
            ("scoring_func", (None, "softmax"), "another score than softmax"),
            ("norm_topk_prob", (None, False), "normalised shares of experts"),
            ("moe_layer_freq", (None, 1), "layers without experts between others"),
            ("attention_bias", (None, False), "biases in attention"),
        ):
            # Without q_lora_rank in the config, transformers takes 1536.
            if (key not in config and key == "q_lora_rank") or config.get(key) not in allowed:
                shown = f"{config[key]!r:.60}" if key in config else "missing"
                raise ValueError(f"{key}: {shown}; {what} (DeepSeek-V2 beyond Lite) are not built here")
        scale = config.get("routed_scaling_factor", 1.0)
        if type(scale) not in (int, float) or not 0 < scale < 1e6:
            raise ValueError(f"routed_scaling_factor: {scale!r:.60}; allowed: a finite number above 0")
        rope = rope_parameters(config)
        if rope["rope_type"] == "yarn":
            yarn.check(rope)

    @classmethod
    def latent(cls, config: Mapping[str, Any]) -> Latent:
        return Latent(
            rank=config["kv_lora_rank"],
            plain=config["qk_nope_head_dim"],
            rotary=config["qk_rope_head_dim"],
            value=config["v_head_dim"],
        )

    @classmethod
    def rotary_size(cls, config: Mapping[str, Any]) -> int:
        return int(config["qk_rope_head_dim"])

    @classmethod
    def rotary_gain(cls, config: Mapping[str, Any]) -> float:
        rope = rope_parameters(config)
        return yarn.gain(rope) if rope["rope_type"] == "yarn" else 1.0

    @classmethod
    def attention(cls, config: Mapping[str, Any]) -> AttentionKind:
        rope = rope_parameters(config)
        size = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
        gain = 1.0
        if rope["rope_type"] == "yarn" and rope.get("mscale_all_dim"):
            gain = yarn.magnitude(float(rope["factor"]), rope["mscale_all_dim"])
        return AttentionKind(scale=size**-0.5 * gain**2)

    @classmethod
    def experts(cls, config: Mapping[str, Any]) -> Experts:
        return Experts(
            count=config["n_routed_experts"],
            chosen=config["num_experts_per_tok"],
            width=config["moe_intermediate_size"],
            normalised=False,
            router="mlp.gate.weight",
            gate="mlp.experts.{}.gate_proj.weight",
            up="mlp.experts.{}.up_proj.weight",
            down="mlp.experts.{}.down_proj.weight",
            scale=float(config.get("routed_scaling_factor", 1.0)),
            first=config.get("first_k_dense_replace", 0),
            shared=config["moe_intermediate_size"] * config.get("n_shared_experts", 2),
            precise=True,
        )
