"""Which modules a decoder layer is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.attention import Attention, CachingAttention
from megatron_ext.model.experts import mixture_of_experts
from megatron_ext.model.families import Experts, family_of
from megatron_ext.model.latent_attention import LatentAttention
from megatron_ext.model.layers import Norm, NormAndAdd, masked_transformer_engine_attention


def layer_specs(
    config: TransformerConfig, ranks: Ranks, hf: Mapping[str, Any], numbers: range
) -> ModuleSpec | TransformerBlockSubmodules:
    """Of this rank's stage.

    Args:
        config: The model's description.
        ranks: Where this process stands.
        hf: The model's Hugging Face config.
        numbers: The stage's layers, counted from the model's first.

    Returns:
        What megatron-core builds the stage from.
    """
    if ranks.kernels == "te":
        spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        spec.submodules.self_attention.module = CachingAttention
        spec.submodules.self_attention.submodules.core_attention = masked_transformer_engine_attention()
        return spec
    experts = family_of(hf).experts(hf)
    layers = [_layer(config, ranks, hf, experts if experts and number >= experts.first else None) for number in numbers]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=Norm)


def _layer(config: TransformerConfig, ranks: Ranks, hf: Mapping[str, Any], experts: Experts | None) -> ModuleSpec:
    """A layer by torch's kernels."""
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    family, parts = family_of(hf), layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = Norm
    latent = family.latent(hf)
    if latent is not None:
        parts.self_attention = ModuleSpec(module=LatentAttention, params={"latent": latent})
    else:
        parts.self_attention.module = CachingAttention
        attention = parts.self_attention.submodules
        attention.core_attention = Attention
        if config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = Norm
    if experts is not None:
        parts.mlp = mixture_of_experts(experts, ranks)
    if family.post_norms:
        parts.self_attn_bda = parts.mlp_bda = ModuleSpec(module=NormAndAdd, params={"config": config})
    return layer
