"""The argmax by blocks: torch's own for every width, ties and numbers that are not finite among them."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_ext.distributed.argmax import BLOCK, argmax


@pytest.mark.parametrize("columns", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK - 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_torchs_argmax(columns: int, dtype: torch.dtype) -> None:
    """Of few distinct numbers, so that nearly every row has ties, within blocks and across them."""
    torch.manual_seed(columns)
    values = torch.randint(-3, 3, (200, columns)).to(dtype)
    rows, places = torch.arange(100), torch.randint(0, columns, (100,))
    values[rows[:40], places[:40]] = math.nan
    values[rows[20:60], places[60:100]] = math.nan
    values[rows[60:80], places[:20]] = math.inf
    values[80:90] = -math.inf
    values[100:110, columns // 2 :] = -math.inf
    assert argmax(values).tolist() == values.argmax(dim=-1).tolist()


def test_ties_go_to_the_first() -> None:
    """Whatever torch's own does on a machine with other kernels."""
    values = torch.zeros(4, 2 * BLOCK + 5)
    values[1, BLOCK - 1 :] = 1.0
    values[2, BLOCK] = values[2, 2 * BLOCK + 1] = 1.0
    values[3, 2 * BLOCK + 2 :] = 1.0
    assert argmax(values).tolist() == [0, BLOCK - 1, BLOCK, 2 * BLOCK + 2]
