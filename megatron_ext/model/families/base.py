"""What a model family is: the ways in which its decoder differs from Llama's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class Family:
    """A family of decoder-only models with RMSNorm, SwiGLU, rotary embeddings and grouped-query attention.

    Tensor names are Llama's in all of them. Subclass in a new file of this package to add one; this module and its
    neighbours import no torch.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False

    @classmethod
    def context(cls, config: Mapping[str, Any]) -> int:
        """The longest sequence that full causal attention computes exactly as the model's own attention."""
        return int(config["max_position_embeddings"])

    @classmethod
    def has_qkv_bias(cls, config: Mapping[str, Any]) -> bool:
        return cls.qkv_bias


REQUIRED = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and the scaling of a config, as written by transformers before and since version 5."""
    new = dict(config.get("rope_parameters") or {})
    old = dict(config.get("rope_scaling") or {})
    merged = {"rope_theta": config.get("rope_theta", 10000.0), **old, **new}
    merged["rope_type"] = merged.get("rope_type") or merged.pop("type", None) or "default"
    return merged
