"""Norms and what else Megatron's model is built of here, and a layer's recomputation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_ext.model.attention import attend
from megatron_ext.model.packing import Reading


class Norm:
    """RMSNorm in the parameters' dtype, for the spec without Transformer Engine.

    Under sequence parallelism each tensor-parallel rank norms its own positions: the weight is marked, so that
    megatron-core sums its gradient over those ranks.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        kind = ZeroCentredNorm if config.layernorm_zero_centered_gamma else torch.nn.RMSNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        norm.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined] # megatron-core's mark
        return norm


class ZeroCentredNorm(torch.nn.RMSNorm):
    """RMSNorm that multiplies by 1 + weight, in fp32 (Gemma 2 and 3)."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.rms_norm(x.float(), self.normalized_shape, 1.0 + self.weight.float(), self.eps)
        return out.to(x.dtype)


class NormAndAdd(torch.nn.Module):
    """In the place where megatron-core adds what attention or MLP gave to the residual: that is normed first.

    Called with megatron-core's two flags it returns the function that adds, as its own ``get_bias_dropout_add`` does.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm: Any = Norm(config, config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]:
        def add(given: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
            values, bias = given
            if bias is not None or dropout:
                raise AssertionError("no family has a bias or dropout here")
            added: Tensor = residual + self.norm(values)
            return added

        return add


def masked_transformer_engine_attention() -> type:
    """Transformer Engine's attention, which under the mask types that megatron-core gives it (causal, or none past the
    prefill) ignores the mask itself; where there is one, or texts are packed, torch's attention heeds it.
    """
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    class MaskedAttention(TEDotProductAttention):
        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | Reading | None,
            *args: Any,
            **kwargs: Any,
        ) -> Tensor:
            if attention_mask is None:
                return super().forward(query, key, value, None, *args, **kwargs)
            if isinstance(attention_mask, Reading):
                return attention_mask.attend(query, key, value, None, self._attend)
            return self._attend(query, key, value, attention_mask)

        def _attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
            return attend(query, key, value, attention_mask, self.config.softmax_scale)

    return MaskedAttention


def recompute(layer: torch.nn.Module) -> None:
    """Keep only the input of ``layer`` for backward, which computes its activations again.

    By torch's checkpointing, not by megatron-core's, which gives no gradient to a block whose input needs none, as the
    first trained one of ``trainable_layers``.
    """
    plain = layer.forward

    def forward(hidden_states: Tensor, **rest: Any) -> Any:
        return checkpoint(plain, hidden_states, use_reentrant=False, preserve_rng_state=False, **rest)

    layer.forward = forward
