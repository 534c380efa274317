"""Attention and normalisation layers that Megatron's model is built of here."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scale: float | None) -> Tensor:
    """Scaled dot-product attention by torch's fused kernels.

    Args:
        query: ``[queries, B, heads, d]``.
        key: ``[keys, B, groups, d]``.
        value: ``[keys, B, groups, d]``.
        attention_mask: bool, broadcastable to ``[B, heads, queries, keys]``, true where attention is forbidden; None
            for causal attention.
        scale: Of the products; None for ``1 / sqrt(d)``.

    Returns:
        ``[queries, B, heads * d]``.
    """
    q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
    allowed = None if attention_mask is None else ~attention_mask
    if q.is_cuda and q.size(2) == 1 and q.size(1) != k.size(1):
        out = attend_once(q, k, v, allowed, scale)
    else:
        out = _attend(q, k, v, allowed, scale)
    return out.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)


def attend_once(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float | None) -> Tensor:
    """Attention of one query position, where several heads share keys and values.

    A head's query becomes a position of its group. With fewer key-value heads than heads and a mask, torch has only a
    kernel for GPUs that repeats keys and values for every head, in fp32; here it needs none that knows of groups.
    On a CPU it would change the last bits and gain nothing.

    Args:
        q: ``[B, heads, 1, d]``.
        k: ``[B, groups, keys, d]``.
        v: ``[B, groups, keys, d]``.
        allowed: bool, broadcastable to ``[B, 1, 1, keys]``, or None.
        scale: Of the products; None for ``1 / sqrt(d)``.

    Returns:
        ``[B, heads, 1, d]``.
    """
    batch, heads, _, width = q.shape
    groups = k.size(1)
    grouped = q.reshape(batch, groups, heads // groups, width)
    if allowed is not None:
        allowed = allowed.expand(batch, 1, heads // groups, k.size(2))
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=allowed, scale=scale)
    return out.reshape(batch, heads, 1, width)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float | None) -> Tensor:
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=allowed,
        is_causal=allowed is None and q.size(2) > 1,
        scale=scale,
        enable_gqa=q.size(1) != k.size(1),
    )


class Attention(DotProductAttention):
    """``attend``, for the spec without Transformer Engine."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any) -> Tensor:
        return attend(query, key, value, attention_mask, self.softmax_scale)


class CachingAttention(SelfAttention):
    """Self-attention whose cache of a generation holds rotated keys, so that a new token costs one rotation.

    megatron-core's rotates all kept keys once more for every token. A layer's cache is two tensors ``[b, groups,
    positions, d]``, keys and values: what attention reads of a row lies together.
    """

    def _adjust_key_value_for_inference(
        self,
        inference_context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary_pos_emb: tuple[Tensor, Tensor] | None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        if inference_context is None:
            return super()._adjust_key_value_for_inference(
                inference_context, query, key, value, rotary_pos_emb, *rest, **named
            )
        start = inference_context.sequence_len_offset
        end = start + key.size(0)
        if rotary_pos_emb is not None:
            group = self.pg_collection.cp
            query, key = (
                apply_rotary_pos_emb(tensor, angles[start:end], config=self.config, cp_group=group)
                for tensor, angles in zip((query, key), rotary_pos_emb, strict=True)
            )
        memory = inference_context.key_value_memory_dict
        if self.layer_number not in memory:
            positions = inference_context.max_sequence_length
            memory[self.layer_number] = tuple(
                new.new_empty(new.size(1), new.size(2), positions, new.size(3)) for new in (key, value)
            )
        kept = memory[self.layer_number]
        for own, new in zip(kept, (key, value), strict=True):
            own[:, :, start:end] = new.permute(1, 2, 0, 3)
        if start == 0:
            return query, key, value, None, self.attn_mask_type, None
        key, value = (own[:, :, :end].permute(2, 0, 1, 3) for own in kept)
        return query, key, value, None, AttnMaskType.no_mask, None


class Norm:
    """RMSNorm in the parameters' dtype, for the spec without Transformer Engine.

    Under sequence parallelism each tensor-parallel rank norms its own positions: the weight is marked, so that
    megatron-core sums its gradient over those ranks.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        norm = torch.nn.RMSNorm(hidden_size, eps=eps, dtype=config.params_dtype)
        norm.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined] # megatron-core's mark
        return norm


def masked_transformer_engine_attention() -> type:
    """Transformer Engine's attention, which under the mask types that megatron-core gives it (causal, or none past the
    prefill) ignores the mask itself; where there is one, as in batches padded on the left, torch's attention heeds it.
    """
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    class MaskedAttention(TEDotProductAttention):
        def forward(
            self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
        ) -> Tensor:
            if attention_mask is None:
                return super().forward(query, key, value, None, *args, **kwargs)
            return attend(query, key, value, attention_mask, self.config.softmax_scale)

    return MaskedAttention
