"""Settings that programs share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megatron_ext.config import Layout, Runtime, TrainableLayers, pipeline_split
from megatron_ext.config.lora import Lora


@pytest.mark.parametrize(
    ("layers", "layout", "split"),
    [
        (5, {"pipeline": 2}, [3, 2]),
        (6, {"pipeline": 3}, [2, 2, 2]),
        (5, {"pipeline": 2, "pipeline_split": [1, 4]}, [1, 4]),
    ],
)
def test_pipeline_split(layers: int, layout: dict[str, Any], split: list[int]) -> None:
    assert pipeline_split(layers, Layout(**layout)) == split


@pytest.mark.parametrize("split", [[2, 2], [3], [1, 2, 2]])
def test_a_pipeline_split_must_fit(split: list[int]) -> None:
    with pytest.raises(ValueError, match=r"pipeline_split: .* must be 2 numbers that sum to 5 layers"):
        pipeline_split(5, Layout(pipeline=2, pipeline_split=split))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs precision: bf16, given 'fp32'"),
        ({"precision": "bf16", "device": "cpu"}, "needs a GPU, and device is 'cpu'"),
    ],
)
def test_transformer_engine_is_refused_where_it_would_not_compute_what_is_asked(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=f"kernels: 'te' {said}; allowed: 'torch'"):
        Runtime(kernels="te", **given)


def test_a_seed_is_one_that_every_generator_takes() -> None:
    """Only this holds the bound: numpy's seed has 32 bits, and is set when a step begins."""
    from pydantic import TypeAdapter, ValidationError

    from megatron_ext.schema import Seed

    seed = TypeAdapter(Seed)
    np.random.seed(seed.validate_python(2**32 - 1))
    for wrong in (-1, 2**32):
        with pytest.raises(ValidationError):
            seed.validate_python(wrong)


def test_adapters_of_a_mixture_are_named_by_the_layers_that_are_trained() -> None:
    """Only this has RMU's matrices beside adapters on a mixture: the attention's have them, the experts' have none."""
    lora, experts = Lora(rank=2, alpha=2.0), {"fused": False, "experts": True, "latent": False}

    def problems(*modules: str) -> list[str]:
        layers = {"up_to": 1, "layers_to_transform": [0], "target_modules": [*modules]}
        return lora.model_problems(**experts, trainable_layers=TrainableLayers.model_validate(layers))

    assert problems("o_proj") == [] and len(lora.model_problems(**experts, trainable_layers=None)) == 1
    (message,) = problems("o_proj", "down_proj")
    assert message.startswith("lora: experts have no adapters here, and 'trainable_layers' names down_proj")
