"""The one factory of GPTModel: this rank's pipeline stage of a Hugging Face config, on CPU or GPU."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_ext.config import Layout, Runtime, TrainableLayers, pipeline_split
from megatron_ext.config.lora import Lora
from megatron_ext.distributed import cpu
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.adapting import adapt
from megatron_ext.model.families import Family, family_of, lacking, rope_parameters
from megatron_ext.model.layer_specs import layer_specs
from megatron_ext.model.layers import recompute

# Modules whose parameters are split over tensor-parallel ranks, and along which dimension; all others are replicated.
SHARDED = {"word_embeddings": 0, "output_layer": 0, "linear_qkv": 0, "linear_proj": 1, "linear_fc1": 0, "linear_fc2": 1}
SHARDED |= {"core_attention": 0, "linear_q_proj": 0, "linear_kv_up_proj": 0}
WHOLE = "linear_proj.bias"  # the one parameter of them that is on every rank


class LanguageModel(GPTModel):
    """GPTModel that ends in hidden states, so that logits are made only where they are needed.

    ``forward`` of int64 ``[B, S]`` returns hidden states ``[S, B, H]`` at every stage.

    Attributes:
        hf_config: The model's Hugging Face config.
        trainable_layers: Which part of the model is built; None for all of it.
        lora: Settings of the adapters that are trained in the place of the model's own parameters; None without.
        logit_cap: Logits ``x`` are ``logit_cap * tanh(x / logit_cap)``; None where they stay.
    """

    hf_config: dict[str, Any]
    trainable_layers: TrainableLayers | None = None
    lora: Lora | None = None
    logit_cap: float | None = None

    def gather_positions(self, hidden_SBH: Tensor, index_N: Tensor) -> Tensor:
        """The last stage's hidden states at some positions.

        Under sequence parallelism, gathers them over the tensor-parallel ranks first: one all-gather.

        Args:
            hidden_SBH: Hidden states; under sequence parallelism this rank's positions of them.
            index_N: int64, places in the hidden states flattened to ``[S * B, H]``.

        Returns:
            ``[N, H]``.
        """
        if self.config.sequence_parallel:
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, tensor_parallel_output_grad=False)
        return hidden_SBH.flatten(0, 1)[index_N]

    def _postprocess(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits of hidden states, on the last stage.

        Backward all-reduces the gradient of the hidden states over the tensor-parallel ranks.

        Args:
            hidden_NH: Hidden states.

        Returns:
            ``[N, V]``, this rank's columns; those that only pad the vocabulary are -inf.
        """
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits, _ = self.output_layer(hidden_NH.unsqueeze(1), weight=weight)
        logits_NV: Tensor = logits.squeeze(1)
        if self.logit_cap is not None:
            logits_NV = self.logit_cap * torch.tanh(logits_NV / self.logit_cap)
        padding = self.vocabulary_padding
        if padding:
            real_NV = logits_NV[:, : logits_NV.size(-1) - padding]
            logits_NV = torch.cat([real_NV, logits_NV.new_full((len(logits_NV), padding), -math.inf)], dim=-1)
        return logits_NV

    @property
    def vocabulary_padding(self) -> int:
        """How many of this rank's last vocabulary rows are padding."""
        shard = self.vocab_size // self.pg_collection.tp.size()
        end = (self.pg_collection.tp.rank() + 1) * shard
        return min(shard, max(0, end - self.hf_config["vocab_size"]))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


def padded_vocabulary(vocabulary: int, tensor: int) -> int:
    """The vocabulary size, padded so that it divides over ``tensor`` ranks."""
    return math.ceil(vocabulary / tensor) * tensor


def transformer_config(
    hf: Mapping[str, Any],
    layout: Layout,
    dtype: torch.dtype,
    trainable_layers: TrainableLayers | None = None,
    training: Runtime | None = None,
) -> TransformerConfig:
    """Megatron's description of a Hugging Face config at a layout.

    Args:
        hf: The config.
        layout: How the model is spread over ranks.
        dtype: Of parameters and activations.
        trainable_layers: Which part of the model is built.
        training: The runtime of a run that needs gradients; without it, sequence parallelism is off.

    Returns:
        The description.

    Raises:
        ValueError: The model is not supported, or does not fit the layout.
    """
    family = family_of(hf)
    heads, latent = hf["num_attention_heads"], family.latent(hf)
    size = latent.rotary if latent else hf.get("head_dim") or hf["hidden_size"] // heads
    split = pipeline_split(hf["num_hidden_layers"], layout, trainable_layers)
    return TransformerConfig(
        num_layers=sum(split),
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=hf.get("num_key_value_heads") or heads,
        kv_channels=size,
        normalization="RMSNorm",
        layernorm_epsilon=hf["rms_norm_eps"],
        gated_linear_unit=True,
        activation_func=ACTIVATIONS[family.activation[1]],
        softmax_scale=family.attention(hf).scale,
        softmax_type="learnable" if family.sinks else "vanilla",
        layernorm_zero_centered_gamma=family.zero_centred_norms,
        add_bias_linear=family.output_bias,
        add_qkv_bias=family.has_qkv_bias(hf),
        qk_layernorm=family.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        pipeline_model_parallel_layout=_stages(split) if layout.pipeline > 1 else None,
        variable_seq_lengths=layout.pipeline > 1,
        sequence_parallel=training is not None and layout.sequence_parallel,
        moe_token_dispatcher_type="alltoall",  # no experts here; the default refuses variable sequence lengths
        perform_initialization=False,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        deallocate_pipeline_outputs=True,
    )


def _stages(split: list[int]) -> list[list[str]]:
    """What each pipeline stage holds, in megatron-core's words."""
    stages = [["decoder"] * count for count in split]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def build(
    hf: Mapping[str, Any],
    ranks: Ranks,
    trainable_layers: TrainableLayers | None = None,
    training: Runtime | None = None,
) -> LanguageModel:
    """Build this rank's stage of the model, with memory allocated and values not set: ``checkpoint.reading`` sets them.

    Args:
        hf: The model's Hugging Face config.
        ranks: Where this process stands.
        trainable_layers: With them, the model is built up to the layer ``up_to``, without final norm and output layer,
            and only the named matrices require a gradient.
        training: The runtime of a run that needs gradients; without it, sequence parallelism and recomputation are off.

    Returns:
        The stage, on ``ranks.device`` in ``ranks.dtype``.

    Raises:
        ValueError: The model is not supported, or does not fit the layout.
    """
    config = transformer_config(hf, ranks.layout, ranks.dtype, trainable_layers, training)
    family = family_of(hf)
    if family.torch_only and ranks.kernels == "te":
        raise ValueError(f"kernels: 'te' lacks {family.torch_only}; allowed: 'torch'")
    rope = rope_parameters(hf)
    split, stage = pipeline_split(hf["num_hidden_layers"], ranks.layout, trainable_layers), ranks.pipeline_rank
    here = range(sum(split[:stage]), sum(split[: stage + 1]))
    with cpu.construction(ranks.on_cpu):
        model = LanguageModel(
            config=config,
            transformer_layer_spec=layer_specs(config, ranks, hf, here),
            vocab_size=padded_vocabulary(hf["vocab_size"], ranks.layout.tensor),
            max_sequence_length=hf["max_position_embeddings"],
            pre_process=ranks.is_first_stage,
            post_process=ranks.is_last_stage and trainable_layers is None,
            parallel_output=True,
            share_embeddings_and_output_weights=family.is_tied(hf) and trainable_layers is None,
            position_embedding_type="rope",
            rotary_base=rope["rope_theta"],
        )
    for name, parameter in model.named_parameters():
        module, leaf = name.split(".")[-2:]
        if module in SHARDED and f"{module}.{leaf}" != WHOLE:
            # megatron-core says so only when it initialises the values itself.
            parameter.tensor_model_parallel = True
            parameter.partition_dim = SHARDED[module]
            parameter.partition_stride = 1
    if config.sequence_parallel and model.post_process:
        # ``gather_positions`` has gathered what the output layer multiplies.
        model.output_layer.sequence_parallel, model.output_layer.allreduce_dgrad = False, True
    model.hf_config, model.trainable_layers = dict(hf), trainable_layers
    if trainable_layers is not None:
        _freeze(model, trainable_layers, family)
    if training is not None and training.recompute_activations:
        for layer in model.decoder.layers:
            recompute(layer)
    model.logit_cap = family.logit_cap(hf)
    model.to(ranks.device)
    adapt(model, hf, ranks)
    return model


# Which Megatron parameter holds the matrices that ``trainable_layers.target_modules`` names.
MATRICES = {
    "qkv_proj": "self_attention.linear_qkv.weight",
    "o_proj": "self_attention.linear_proj.weight",
    "gate_up_proj": "mlp.linear_fc1.weight",
    "down_proj": "mlp.linear_fc2.weight",
}

EXPERT = re.compile(r"(shared_)?experts\.(\d+\.)?")  # in a parameter's name, where a layer has experts


def _freeze(model: LanguageModel, trainable_layers: TrainableLayers, family: type[Family]) -> None:
    found = lacking(family.latent(model.hf_config), trainable_layers.target_modules)
    if found:
        raise ValueError(f"trainable_layers.{found}")
    ends = tuple(MATRICES[name] for name in trainable_layers.target_modules)
    model.requires_grad_(False)
    for layer in model.decoder.layers:
        if layer.layer_number - 1 in trainable_layers.trained_layers:
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(EXPERT.sub("", name) in ends)
