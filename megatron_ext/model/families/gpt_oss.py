"""gpt-oss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ext.model.families import yarn
from megatron_ext.model.families.base import AttentionKind, Experts, Family, rope_parameters
from megatron_ext.model.families.gemma import SLIDING
from megatron_ext.model.families.sizes import check_experts, check_layer_types, check_theta, positive


class GptOss(Family):
    """gpt-oss, in unquantised checkpoints."""

    architectures = ("GptOssForCausalLM",)
    defaults = {"num_key_value_heads": 8, "head_dim": 64}
    qkv_bias = True
    output_bias = True
    sinks = True
    scalings = ("default", "yarn")
    torch_only = "attention sinks, windows in some layers, mixtures of experts"

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        check_experts(config, ("num_local_experts",), "num_experts_per_tok", "intermediate_size")
        check_layer_types(config)
        rope = rope_parameters(config)
        check_theta(config)
        kinds = [(config.get(name) or {}).keys() for name in ("rope_parameters", "rope_scaling")]
        if not any(kind & {"rope_type", "type"} for kind in kinds):
            raise ValueError(
                "the model's config lacks ['rope_scaling'] with a 'rope_type': transformers would take 'yarn' with "
                "factor 32; allowed: 'yarn', 'default'"
            )
        if rope["rope_type"] == "yarn":
            yarn.check(rope)
        if config.get("attention_bias") is False:
            raise ValueError("attention_bias: false is not supported for GptOssForCausalLM")
        for key in ("swiglu_alpha", "swiglu_limit"):
            if config.get(key) is not None:
                positive(key, config[key])

    @classmethod
    def rotary_gain(cls, config: Mapping[str, Any]) -> float:
        rope = rope_parameters(config)
        return yarn.gain(rope) if rope["rope_type"] == "yarn" else 1.0

    @classmethod
    def attention(cls, config: Mapping[str, Any]) -> AttentionKind:
        kinds = config.get("layer_types") or [
            "full_attention" if layer % 2 else SLIDING for layer in range(config["num_hidden_layers"])
        ]
        window = config.get("sliding_window", 128)
        return AttentionKind(windows=tuple(window if kind == SLIDING else None for kind in kinds))

    @classmethod
    def experts(cls, config: Mapping[str, Any]) -> Experts:
        return Experts(
            count=config["num_local_experts"],
            chosen=config["num_experts_per_tok"],
            width=config["intermediate_size"],
            normalised=True,
            router="mlp.router.weight",
            gate="mlp.experts.gate_up_proj",
            up="",
            down="mlp.experts.down_proj",
            stacked=True,
            clamp=(float(config.get("swiglu_alpha") or 1.702), float(config.get("swiglu_limit") or 7.0)),
        )
