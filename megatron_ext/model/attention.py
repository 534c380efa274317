"""Attention by torch's kernels, and its cache in generation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from torch import Tensor

from megatron_ext.model.packing import Reading
from megatron_ext.model.rotary import Rotation, Rotations, rotate


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


def attend_openly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scale: float,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As ``attend``, with what torch's fused kernels do not know, so that the products are held as a whole.

    They are ``[B, heads, queries, keys]``. The mask is the same for every head.

    Args:
        query: As in ``attend``.
        key: As in ``attend``.
        value: As in ``attend``.
        attention_mask: As in ``attend``.
        scale: Of the products.
        cap: The scaled products ``x`` become ``cap * tanh(x / cap)`` (Gemma 2, arXiv 2408.00118); None for no cap.
        sinks: ``[heads]``, a further product of each head, whose share of attention goes to no position (gpt-oss, arXiv
            2508.10925); None for none.

    Returns:
        As ``attend``.
    """
    queries, batch, heads, width = query.shape
    keys, _, groups, _ = key.shape
    q = query.permute(1, 2, 0, 3).reshape(batch, groups, heads // groups, queries, width)
    k, v = (t.permute(1, 2, 0, 3).unsqueeze(2) for t in (key, value))
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if attention_mask is None:
        attention_mask = within_window(None, queries, keys, keys, query.device)
    if attention_mask is not None:
        scores = scores.masked_fill(attention_mask.unsqueeze(2), float("-inf"))
    if sinks is not None:
        sink = sinks.view(1, groups, -1, 1, 1).expand(batch, -1, -1, queries, -1)
        scores = torch.cat([scores, sink], dim=-1)
    shares = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        shares = shares[..., :-1]
    return torch.matmul(shares, v).reshape(batch, heads, queries, -1).permute(2, 0, 1, 3).reshape(queries, batch, -1)


def within_window(
    attention_mask: Tensor | None, queries: int, keys: int, window: int, device: torch.device
) -> Tensor | None:
    """A mask under which the last ``queries`` of ``keys`` positions see the newest ``window`` positions alone.

    Args:
        attention_mask: bool, broadcastable to ``[B, heads, queries, keys]``, what is forbidden besides; None for causal
            attention.
        queries: How many queries there are.
        keys: How many keys.
        window: How many positions one sees, its own among them.
        device: Where the mask is made.

    Returns:
        bool, four-dimensional; None where nothing is forbidden but what causal attention of these queries forbids by
        itself: a single query that sees every key.
    """
    if attention_mask is None and queries == 1 and keys <= window:
        return None
    key_K = torch.arange(keys, device=device)
    query_Q1 = key_K[keys - queries :].unsqueeze(1)
    forbidden = (key_K <= query_Q1 - window) | (key_K > query_Q1 if attention_mask is None else attention_mask)
    return forbidden.view(1, 1, queries, keys) if attention_mask is None else forbidden


class Attention(DotProductAttention):
    """``attend``, for the spec without Transformer Engine.

    Attributes:
        window: How many of the newest positions a position sees; None for all.
        cap: As in ``attend_openly``; None for no cap.
        softmax_offset: ``[heads]``, the sinks of this rank's heads, where megatron-core makes them; else None.
    """

    window: int | None = None
    cap: float | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | Reading | None,
        **_: Any,
    ) -> Tensor:
        if isinstance(attention_mask, Reading):
            return attention_mask.attend(query, key, value, self.window, self._attend)
        if self.window is not None and key.size(0) > self.window:
            attention_mask = within_window(attention_mask, query.size(0), key.size(0), self.window, query.device)
        return self._attend(query, key, value, attention_mask)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
        sinks = self.softmax_offset
        if self.cap is not None or sinks is not None:
            return attend_openly(query, key, value, attention_mask, self.softmax_scale, self.cap, sinks)
        return attend(query, key, value, attention_mask, self.softmax_scale)


class CachingAttention(SelfAttention):
    """Self-attention that rotates queries and keys itself, keys before a generation's cache takes them.

    megatron-core's rotates all kept keys once more for every token.

    Attributes:
        rotations: Of all layers with the same rotary embedding.
        query_scale: ``[d]``, what queries are multiplied by; None for nothing.
    """

    rotations: Rotations
    query_scale: Tensor | None = None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | Reading | None,
        *rest: Any,
        rotary_pos_emb: Tensor | None = None,
        **named: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As megatron-core's, with the rotation of each token's place in its text. With an ``inference_context``
        there is a ``Packing`` or a ``Continuation``."""
        assert rotary_pos_emb is not None
        reading = attention_mask if isinstance(attention_mask, Reading) else None
        if named.get("inference_context") is not None:
            named["inference_context"].reading = reading
        found: tuple[Tensor, Tensor | None] = super().forward(
            hidden_states,
            attention_mask,
            *rest,
            rotary_pos_emb=self.rotations.of(rotary_pos_emb, reading, hidden_states.dtype),
            **named,
        )
        return found

    def _adjust_key_value_for_inference(
        self,
        inference_context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary_pos_emb: Rotation,
        *_: Any,
        **__: Any,
    ) -> Any:
        """Called by megatron-core in training too; it rotates nothing after this."""
        if self.query_scale is not None:
            query = query * self.query_scale
        query, key = (rotate(tensor, rotary_pos_emb) for tensor in (query, key))
        if inference_context is not None:
            key, value = inference_context.reading.with_earlier(inference_context, self.layer_number, key, value)
        return query, key, value, None, self.attn_mask_type, None
