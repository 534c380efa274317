"""What planning says of a model's size, for every family: the tensors of its checkpoint, counted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from megatron_ext.checkpoint.mapping import tensor_shapes
from megatron_ext.config import Layout
from megatron_ext.model import families
from pipeline.config.checks.weights import tensors
from pipeline.config.sizing import Shape, layout_problems
from tests.support.worlds import CONFIG

OWN: dict[str, dict[str, Any]] = {
    "Gemma2ForCausalLM": {"head_dim": 16},
    "Gemma3ForCausalLM": {"head_dim": 16},
    "Qwen3ForCausalLM": {"head_dim": 16},
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "GptOssForCausalLM": {"head_dim": 16, "rope_theta": 1e4, "num_local_experts": 4, "num_experts_per_tok": 2}
    | {"rope_scaling": {"rope_type": "default"}},
    "DeepseekV2ForCausalLM": {"num_key_value_heads": None, "q_lora_rank": None, "kv_lora_rank": 20, "v_head_dim": 10}
    | {"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 24, "first_k_dense_replace": 1},
    "Qwen3MoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
MIXTURE = {**CONFIG, "architectures": ["Qwen3MoeForCausalLM"], **OWN["Qwen3MoeForCausalLM"]}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", families.known())
def test_parameters_are_those_of_the_checkpoint(architecture: str, tied: bool) -> None:
    config = {**CONFIG, "architectures": [architecture], "tie_word_embeddings": tied, **OWN.get(architecture, {})}
    shape, whole = Shape.of(config), tensor_shapes(config)
    assert shape.parameters == sum(math.prod(size) for size in whole.values())
    checked = tensors(shape)
    assert {name: whole[name] for name in checked} == checked
    assert {name.partition("layers.0.")[2] for name in checked if ".layers.0." in name} >= {"self_attn.o_proj.weight"}


def test_experts_divide_over_their_groups() -> None:
    shape, dense = Shape.of(MIXTURE), Shape.of(CONFIG)
    assert layout_problems(Layout(tensor=2, expert=2), shape) == []
    assert [text.split(":")[0] for text in layout_problems(Layout(tensor=2, expert=2), dense)] == ["expert"]
    three = Shape.of({**MIXTURE, "num_experts": 3})
    assert "expert: 2 does not divide the model's 3" in layout_problems(Layout(tensor=2, expert=2), three)[0]
    with pytest.raises(ValueError, match=r"expert: 2 does not divide tensor, 3"):
        Layout(tensor=3, expert=2)
