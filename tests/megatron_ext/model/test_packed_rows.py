"""Attention of rows that follow one another, beside that of each row alone."""

from __future__ import annotations

import pytest
import torch

from megatron_ext.model.attention import attend, within_window
from megatron_ext.model.packed_rows import PackedRows

LENGTHS = (7, 3, 3, 1, 5)


@pytest.mark.parametrize("window", [None, 4])
def test_every_row_is_attended_to_alone(window: int | None) -> None:
    """Only this compares with each row by itself, gradients of queries, keys and values too."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(sum(LENGTHS), 1, heads, 8, generator=generator) for heads in (4, 2, 2)]
    packed, alone = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))

    def scored(*tensors: torch.Tensor | None) -> torch.Tensor:
        query, key, value, mask = tensors
        assert query is not None and key is not None and value is not None
        return attend(query, key, value, mask, None)

    rows = PackedRows.of(LENGTHS, torch.device("cpu"))
    out_T1E = rows.attend(*packed, window, scored)
    expected = []
    for q, k, v in zip(*(tensor.split(list(LENGTHS)) for tensor in alone), strict=True):
        length = len(q)
        narrow = window is not None and length > window
        mask = within_window(None, length, length, window, q.device) if narrow and window is not None else None
        expected.append(scored(q, k, v, mask))
    torch.testing.assert_close(out_T1E, torch.cat(expected), rtol=1e-6, atol=1e-6)
    weights = torch.randn(out_T1E.shape, generator=generator)
    for out in (out_T1E, torch.cat(expected)):
        (out * weights).sum().backward()
    for ours, theirs in zip(packed, alone, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert rows.positions_T.tolist() == [place for length in LENGTHS for place in range(length)]
