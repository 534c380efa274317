"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), over tensor-parallel ranks by heads.

Each position has one short vector, from which every head's keys and values are made, and one rotated part of keys that
all heads share. What makes these two is on every rank, and its gradient is whole there: megatron-core's own layer
gathers them from the ranks instead, and its gradient of the rotated part is that of a rank's own heads.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_ext.model.attention import Attention
from megatron_ext.model.continuation import Continuation
from megatron_ext.model.families import Latent
from megatron_ext.model.layers import Norm
from megatron_ext.model.packing import Packing, Reading
from megatron_ext.model.rotary import Rotation, Rotations, rotate

NORM_EPSILON = 1e-6  # whatever ``rms_norm_eps`` is, in the model's own code and in transformers


class LatentAttention(torch.nn.Module):
    """This rank's heads.

    Attributes:
        rotations: Of all layers.
        query_scale: ``[rotary]``, what the rotated numbers of queries are multiplied by; None for nothing.
    """

    rotations: Rotations
    query_scale: Tensor | None = None

    def __init__(
        self, config: TransformerConfig, layer_number: int, latent: Latent, pg_collection: Any, **_: Any
    ) -> None:
        super().__init__()
        self.config, self.layer_number, self.sizes, self._group = config, layer_number, latent, pg_collection
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.heads = heads // pg_collection.tp.size()

        def column(inputs: int, outputs: int) -> Any:
            return ColumnParallelLinear(
                inputs,
                outputs,
                config=config,
                init_method=config.init_method,
                bias=False,
                gather_output=False,
                tp_group=pg_collection.tp,
            )

        self.linear_q_proj = column(hidden, heads * (latent.plain + latent.rotary))
        down = torch.nn.utils.skip_init(
            torch.nn.Linear, hidden, latent.rank + latent.rotary, bias=False, dtype=config.params_dtype
        )
        down.weight.sequence_parallel = config.sequence_parallel
        self.linear_kv_down_proj = down
        self.kv_layernorm: Any = Norm(config, latent.rank, eps=NORM_EPSILON)
        self.linear_kv_up_proj = column(latent.rank, heads * (latent.plain + latent.value))
        self.core_attention = Attention(
            config,
            layer_number,
            AttnMaskType.causal,
            "self",
            softmax_scale=config.softmax_scale,
            pg_collection=pg_collection,
        )
        self.linear_proj = RowParallelLinear(
            heads * latent.value,
            hidden,
            config=config,
            init_method=config.init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=pg_collection.tp,
        )

    def forward(
        self,
        hidden_SBH: Tensor,
        attention_mask: Tensor | Reading | None,
        inference_context: Any = None,
        rotary_pos_emb: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attention's output, and no bias.

        Args:
            hidden_SBH: Under sequence parallelism this rank's positions.
            attention_mask: As in ``attend``, or what stands for it where texts are packed.
            inference_context: A generation's.
            rotary_pos_emb: Angles ``[positions, 1, 1, rotary]``, of all positions from the first.

        Returns:
            ``[S, B, H]``, of the positions that were given.
        """
        sizes = self.sizes
        query = self.linear_q_proj(hidden_SBH)[0].unflatten(-1, (self.heads, -1))
        short, rotated = self.linear_kv_down_proj(hidden_SBH).split([sizes.rank, sizes.rotary], dim=-1)
        # Backward sums over the ranks what their heads make of the part of keys that all have.
        if self.config.sequence_parallel:
            rotated = gather_from_sequence_parallel_region(rotated, group=self._group.tp)
        else:
            rotated = copy_to_tensor_model_parallel_region(rotated, group=self._group.tp)
        both = self.linear_kv_up_proj(self.kv_layernorm(short))[0].unflatten(-1, (self.heads, -1))
        key, value = both.split([sizes.plain, sizes.value], dim=-1)
        assert rotary_pos_emb is not None
        reading = attention_mask if isinstance(attention_mask, Reading) else None
        rotation = self.rotations.of(rotary_pos_emb, reading, torch.float32)
        plain, turned = query.split([sizes.plain, sizes.rotary], dim=-1)
        query = torch.cat([plain, _rotated(turned, rotation, self.query_scale)], dim=-1)
        shared = _rotated(rotated.unsqueeze(2), rotation).expand(-1, -1, self.heads, -1)
        key = torch.cat([key, shared], dim=-1)
        if inference_context is not None:
            assert isinstance(attention_mask, Packing | Continuation)
            key, value = attention_mask.with_earlier(inference_context, self.layer_number, key, value)
        out: Tensor = self.linear_proj(self.core_attention(query, key, value, attention_mask))[0]
        return out, None


def _rotated(x_SBHR: Tensor, rotation: Rotation, scale: Tensor | None = None) -> Tensor:
    """Pairs of neighbours are rotated, in fp32, and then lie half a vector apart: in queries as in keys."""
    turned = rotate(x_SBHR.float().unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2), rotation)
    return (turned if scale is None else turned * scale).to(x_SBHR.dtype)
