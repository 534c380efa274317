"""Gemma 2 and Gemma 3, without images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from megatron_ext.model.families.base import AttentionKind, Family
from megatron_ext.model.families.sizes import check_layer_types, positive

SLIDING = "sliding_attention"


class _Gemma(Family):
    defaults = {"num_key_value_heads": 4, "head_dim": 256}
    activation = ("hidden_activation", "gelu_pytorch_tanh")
    scalings = ("default", "linear")
    tied = True
    zero_centred_norms = True
    post_norms = True
    scaled_embeddings = True
    torch_only = "attention with windows in some layers, norms behind attention and MLP"
    attention_cap: ClassVar[float | None]
    output_cap: ClassVar[float | None]
    window: ClassVar[int] = 4096
    pattern: ClassVar[int]  # every so many layers, the last of them sees all positions

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        for key in ("attention_bias", "use_bidirectional_attention"):
            if config.get(key):
                raise ValueError(f"{key}: {config[key]!r:.60} is not supported for {cls.architectures[0]}")
        for key in ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"):
            if config.get(key) is not None:
                positive(key, config[key])
        check_layer_types(config)
        pattern = config.get("sliding_window_pattern")
        if pattern is not None and (type(pattern) is not int or pattern < 1):
            raise ValueError(f"sliding_window_pattern: {pattern!r:.60}; allowed: a whole number from 1")

    @classmethod
    def attention(cls, config: Mapping[str, Any]) -> AttentionKind:
        pattern = config.get("sliding_window_pattern") or cls.pattern
        kinds = config.get("layer_types") or [
            SLIDING if (layer + 1) % pattern else "full_attention" for layer in range(config["num_hidden_layers"])
        ]
        window = config.get("sliding_window", cls.window)
        return AttentionKind(
            scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
            cap=config.get("attn_logit_softcapping", cls.attention_cap),
            windows=tuple(window if kind == SLIDING else None for kind in kinds),
            local_theta=cls.local_theta(config),
        )

    @classmethod
    def local_theta(cls, config: Mapping[str, Any]) -> float | None:
        """Base of the rotary embedding in layers with a window."""
        return None

    @classmethod
    def logit_cap(cls, config: Mapping[str, Any]) -> float | None:
        cap = config.get("final_logit_softcapping", cls.output_cap)
        return None if cap is None else float(cap)


class Gemma2(_Gemma):
    """Gemma 2."""

    architectures = ("Gemma2ForCausalLM",)
    attention_cap = 50.0
    output_cap = 30.0
    pattern = 2


class Gemma3(_Gemma):
    """Gemma 3, text alone."""

    architectures = ("Gemma3ForCausalLM",)
    qk_norm = True
    attention_cap = None
    output_cap = None
    pattern = 6

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        super().check(config)
        if "rope_theta" not in config and "full_attention" not in (config.get("rope_parameters") or {}):
            raise ValueError("the model's config lacks ['rope_theta']")
        local = cls._local(config)
        if local.get("rope_type", "default") != "default":
            raise ValueError(f"rope scaling {local['rope_type']!r:.60} is not supported in layers with a window")
        positive("rope_local_base_freq", cls.local_theta(config))

    @classmethod
    def local_theta(cls, config: Mapping[str, Any]) -> float | None:
        theta: float = cls._local(config).get("rope_theta", config.get("rope_local_base_freq", 10000.0))
        return theta

    @classmethod
    def _local(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        local = (config.get("rope_parameters") or {}).get(SLIDING) or {}
        if not isinstance(local, Mapping):
            raise ValueError(f"rope_parameters.{SLIDING}: {local!r:.60}; allowed: an object")
        return local
