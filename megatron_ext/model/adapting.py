"""In what a family's attention and embedding differ from Llama's, set on the model that was built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_ext.distributed import cpu
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.families import family_of, rope_parameters
from megatron_ext.model.rotary import Rotations


def adapt(model: GPTModel, hf: Mapping[str, Any], ranks: Ranks) -> None:
    """Give the built model its rotary frequencies and what else its attention and embedding differ in.

    Args:
        model: This rank's stage.
        hf: Its Hugging Face config.
        ranks: Where this process stands.
    """
    family = family_of(hf)
    model.rotary_pos_emb.inv_freq = rotary_frequencies(hf, family.rotary_size(hf)).to(ranks.device)
    kind, gain, size = family.attention(hf), family.rotary_gain(hf), model.config.kv_channels
    rotations = Rotations()
    local = rotations
    if kind.local_theta is not None:
        with cpu.construction(ranks.on_cpu):
            embedding = RotaryEmbedding(size, 1.0, rotary_base=kind.local_theta, cp_group=model.pg_collection.cp)
        exponents = torch.arange(0, size, 2, dtype=torch.int64).float() / size
        embedding.inv_freq = (1.0 / (kind.local_theta**exponents)).to(ranks.device)
        local = Rotations(embedding.forward)
    for layer in model.decoder.layers:
        attention = layer.self_attention
        attention.rotations = rotations
        if kind.cap is not None:
            attention.core_attention.cap = kind.cap
        if kind.windows and kind.windows[layer.layer_number - 1] is not None:
            attention.core_attention.window = kind.windows[layer.layer_number - 1]
            attention.rotations = local
        if gain != 1.0:
            # The products of queries and keys have the gain twice; the rest of a head has none.
            scale = torch.ones(size, dtype=ranks.dtype, device=ranks.device)
            scale[: family.rotary_size(hf)] = gain**2
            attention.query_scale = scale
    if family.scaled_embeddings and model.pre_process:
        root = torch.tensor(math.sqrt(hf["hidden_size"]), dtype=ranks.dtype).item()  # rounded, as transformers does
        model.embedding.register_forward_hook(lambda module, given, embedded: embedded * root)


def rotary_frequencies(hf: Mapping[str, Any], dimension: int) -> Tensor:
    """Inverse frequencies ``[dimension / 2]``, fp32, with the config's scaling: default, linear, llama3,
    longrope or yarn.

    Those of longrope are the ones of sequences up to the original context. megatron-core's own llama3 scaling fixes the
    two frequency factors and the original context; these are the config's.
    """
    rope = rope_parameters(hf)
    exponents = torch.arange(0, dimension, 2, dtype=torch.int64).float() / dimension
    if rope["rope_type"] == "longrope":
        return 1.0 / (torch.tensor(rope["short_factor"], dtype=torch.float32) * float(rope["rope_theta"]) ** exponents)
    frequencies = 1.0 / (float(rope["rope_theta"]) ** exponents)
    if rope["rope_type"] == "default":
        return frequencies
    if rope["rope_type"] == "yarn":
        return _yarn(frequencies, rope)
    factor = float(rope["factor"])
    if rope["rope_type"] == "linear":
        return frequencies / factor
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = float(rope["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return share * frequencies + (1 - share) * frequencies / factor


def _yarn(frequencies: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Frequencies that turn often within the original context stay, those that turn rarely are divided by the factor,
    and there is a ramp between them (arXiv 2309.00071, section 3.2), as transformers computes it."""
    dimension, theta = 2 * len(frequencies), float(rope["rope_theta"])

    def place(turns: float) -> float:
        original = float(rope["original_max_position_embeddings"])
        return dimension * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(float(rope.get("beta_fast") or 32)), place(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimension - 1)
    high += 0.001 * (low == high)
    divided = ((torch.arange(len(frequencies), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / float(rope["factor"]) * divided + frequencies * (1 - divided)
