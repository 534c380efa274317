"""A parameter taken apart into the tensors of the checkpoint: biases, norms of heads and fused matrices too."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.config import TrainableLayers
from tests.support.worlds import CONFIG

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_runs_of_a_tensor_are_its_values_in_order(alone: Any, name: str) -> None:
    """Layouts: test_step_layouts.py. Here are the parameters that Llama lacks."""
    import torch

    from megatron_ext.checkpoint import mapping, reading
    from megatron_ext.training import tensor_runs

    model = reading.initialise({**CONFIG, **MODELS[name]}, alone, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter))
    known, names = tensor_runs.runs(model, alone), tensor_runs.names(model)
    parameters, seen = dict(model.named_parameters()), []
    assert set(known) == set(parameters.values())
    for entry in mapping.entries(model.hf_config, alone.layout, 0):
        parameter = entry.find(parameters)
        for part in entry.parts(0, 1):
            runs = [run for run in known[parameter] if names[run.tensor] == part.name]
            values = torch.cat([parameter.detach().flatten()[run.low : run.high] for run in runs])
            assert values.equal(part.place(parameter.detach()).flatten()), part.name
            seen.append(part.name)
    assert seen == names


def test_a_fused_matrix_is_one_tensor(alone: Any) -> None:
    """As in Phi-3's checkpoints, where megatron-core's order of rows is another one."""
    from megatron_ext.checkpoint import reading
    from megatron_ext.training import tensor_runs

    model = reading.initialise({**CONFIG, "architectures": ["Phi3ForCausalLM"]}, alone, seed=3)
    parameter = model.get_parameter("decoder.layers.0.self_attention.linear_qkv.weight")
    runs, names = tensor_runs.runs(model, alone)[parameter], tensor_runs.names(model)
    assert {names[run.tensor] for run in runs} == {"model.layers.0.self_attn.qkv_proj.weight"}
    assert [run.low for run in runs] == [0, *(run.high for run in runs[:-1])]
    assert runs[-1].high == parameter.numel()


def test_only_what_is_trained_has_runs(alone: Any) -> None:
    from megatron_ext.checkpoint import reading, tensor_sources
    from megatron_ext.model import build as model
    from megatron_ext.training import tensor_runs

    scope = TrainableLayers(up_to=1, layers_to_transform=[1], target_modules=["qkv_proj", "down_proj"])
    built = model.build(CONFIG, alone, scope)
    reading.fill(built, alone, tensor_sources.InitialValues(CONFIG, 3))
    found = {tensor_runs.names(built)[run.tensor] for runs in tensor_runs.runs(built, alone).values() for run in runs}
    attention = {f"model.layers.1.self_attn.{which}_proj.weight" for which in "qkv"}
    assert found == attention | {"model.layers.1.mlp.down_proj.weight"}


def test_a_run_is_cut_to_a_piece() -> None:
    from megatron_ext.training.tensor_runs import Run

    assert Run(3, 10, 20).within(0, 12) == Run(3, 10, 12)
    assert Run(3, 10, 20).within(12, 50) == Run(3, 0, 8)
    assert Run(3, 10, 20).within(20, 50) is Run(3, 10, 20).within(0, 10) is None
