"""Tiny random models of every family, written by transformers, and the whole forward pass at any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 517  # odd, so that two tensor-parallel ranks need padding
LENGTH = 24
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.4],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "llama3": ("LlamaForCausalLM", {"num_key_value_heads": 2, "rope_parameters": _LLAMA3_ROPE}),
    "mistral": ("MistralForCausalLM", {"num_key_value_heads": 2, "sliding_window": 48}),
    "qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 2}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"num_key_value_heads": 2, "head_dim": 24, "sliding_window": 9, "query_pre_attn_scalar": 20}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"num_key_value_heads": 2, "head_dim": 24, "sliding_window": 9, "query_pre_attn_scalar": 20}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_parameters": _TWO_ROPES},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {"num_key_value_heads": 4, "num_local_experts": 4, "rope_parameters": {"rope_theta": 5000.0}},
    ),
    "qwen3moe": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "head_dim": 24}
        | {"num_key_value_heads": 4},
    ),
    "phi3": ("Phi3ForCausalLM", {"num_key_value_heads": 2, "sliding_window": 48}),
    "phi4mini": ("Phi3ForCausalLM", {"num_key_value_heads": 2, "rope_parameters": _LONGROPE}),
    "qwen3": ("Qwen3ForCausalLM", {"num_key_value_heads": 2, "head_dim": 24}),
    "gptoss": (
        "GptOssForCausalLM",
        {"num_key_value_heads": 4, "head_dim": 24, "sliding_window": 9, "num_local_experts": 4, "swiglu_limit": 0.6}
        | {"num_experts_per_tok": 2, "rope_parameters": _YARN | {"truncate": False}},
    ),
    "deepseek": (
        "DeepseekV2ForCausalLM",
        {"q_lora_rank": None, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 2}
        | {"first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "rms_norm_eps": 1e-5}
        | {"rope_parameters": _YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}},
    ),
}
MIXING = ("mixtral", "qwen3moe", "gptoss", "deepseek")
# Gemma's are always tied, Phi's and mixtures of experts here never.
MODELS = [
    f"{family}-{tie}"
    for family in FAMILIES
    for tie in ("untied", "tied")
    if not family.startswith(("gemma",) if tie == "untied" else ("phi", *MIXING))
]
MIXTURES = [f"{family}-untied" for family in MIXING]


def make(name: str) -> Any:
    """A transformers model, in fp32, whose every parameter has a random value that matters."""
    import torch
    import transformers

    family, tie = name.split("-")
    architecture, own = FAMILIES[family]
    kind = getattr(transformers, architecture)
    config = kind.config_class(**_COMMON, **own, tie_word_embeddings=tie == "tied", attn_implementation="eager")
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(MODELS.index(name))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("norm.weight"):
                value.normal_(0.0 if family.startswith("gemma") else 1.0, 0.2, generator=generator)
            else:
                value.normal_(0.0, 0.3 if key.endswith("bias") else 0.12, generator=generator)
    return model


def token_ids() -> Any:
    """Two sequences, int64 ``[2, LENGTH]``, the highest token id among them."""
    import torch

    ids = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[0, 3] = VOCABULARY - 1
    return ids


def write(folder: Path, names: list[str] | None = None) -> None:
    """``folder/fp32/<name>`` and ``folder/bf16/<name>``, and the fp32 logits of ``token_ids()`` in ``<name>.pt``."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    for name in names or MODELS:
        model = make(name)
        with torch.no_grad():
            torch.save(model(token_ids()).logits, folder / f"{name}.pt")
        model.save_pretrained(folder / "fp32" / name)
        model.to(torch.bfloat16).save_pretrained(folder / "bf16" / name)


def logits(model: Any, ranks: Any, ids: Any) -> Any:
    """Logits ``[b, s, padded vocabulary]`` on the last stage, None elsewhere. Collective over a data-parallel rank."""
    import torch
    import torch.distributed as dist

    stages = dist.get_process_group_ranks(ranks.pipeline_group)
    batch, length = ids.shape
    with torch.no_grad():
        if not ranks.is_first_stage:
            received = torch.empty(length, batch, model.config.hidden_size, dtype=ranks.dtype)
            dist.recv(received, stages[ranks.pipeline_rank - 1])
            model.set_input_tensor(received)
        hidden = model(ids, torch.arange(length).expand(batch, -1), None)
        if not ranks.is_last_stage:
            dist.send(hidden.contiguous(), stages[ranks.pipeline_rank + 1])
            return None
        shard = model.logits(hidden.transpose(0, 1).reshape(batch * length, -1)).contiguous()
        shards = [torch.empty_like(shard) for _ in range(ranks.layout.tensor)]
        dist.all_gather(shards, shard, group=ranks.tensor_group)
        return torch.cat(shards, dim=-1).view(batch, length, -1)
