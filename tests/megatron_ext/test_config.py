"""Settings that programs share."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.config import Layout, pipeline_split


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
