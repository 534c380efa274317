"""Settings that programs share."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.config import Layout, Runtime, pipeline_split


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
