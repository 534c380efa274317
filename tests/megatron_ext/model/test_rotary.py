"""Rotary embeddings against the formula, against megatron-core's, and how often angles are looked up."""

from __future__ import annotations

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

from megatron_ext.model.packed_rows import PackedRows
from megatron_ext.model.rotary import Rotations, rotate


def angles_of(positions: int, numbers: int, base: float = 100.0) -> torch.Tensor:
    """As megatron-core makes them: ``[positions, 1, 1, numbers]``."""
    frequencies = base ** (-torch.arange(0, numbers, 2, dtype=torch.float32) / numbers)
    half = torch.arange(positions, dtype=torch.float32).outer(frequencies)
    return torch.cat([half, half], dim=-1)[:, None, None, :]


@pytest.mark.parametrize("numbers", [8, 6])
def test_each_pair_is_turned_by_its_angle(numbers: int) -> None:
    """Only this writes the rotation out, as a product of complex numbers, with and without numbers that stay."""
    x = torch.randn(5, 2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles = angles_of(5, numbers)
    turned = rotate(x, Rotations().of(angles, None, torch.float64))
    pairs = torch.complex(x[..., : numbers // 2], x[..., numbers // 2 : numbers])
    half = angles[..., : numbers // 2]
    expected = pairs * torch.complex(half.cos().double(), half.sin().double())
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag, x[..., numbers:]], dim=-1))


@pytest.mark.parametrize("numbers", [8, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_megatron_core(numbers: int, dtype: torch.dtype) -> None:
    """Only this compares the gradient, of a part of a larger tensor as queries are, in both precisions."""
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(5, 2, 3, 11, generator=generator).to(dtype)
    ours, theirs = (whole.clone().requires_grad_() for _ in range(2))
    angles = angles_of(5, numbers)
    found = rotate(ours[..., 2:10], Rotations().of(angles, None, dtype))
    expected = _apply_rotary_pos_emb_bshd(theirs[..., 2:10], angles)
    weights = torch.randn(found.shape, generator=generator).to(dtype)
    for out in (found, expected):
        (out * weights).sum().backward()
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(ours.grad, theirs.grad, **close)


def test_layers_of_a_pass_share_its_rotation() -> None:
    """Only this says when angles are looked up again: for other positions, another reading, another dtype."""
    rotations, few, many = Rotations(), angles_of(5, 8), angles_of(9, 8)
    rows = PackedRows.of((3, 4), torch.device("cpu"))
    first = rotations.of(few, None, torch.float32)
    assert rotations.of(few, None, torch.float32) is first
    longer = rotations.of(many, None, torch.float32)
    assert longer.cosine.shape == (9, 1, 1, 4)
    packed = rotations.of(many, rows, torch.float32)
    assert packed.sine.equal(longer.sine[[0, 1, 2, 0, 1, 2, 3]])
    assert rotations.of(many, PackedRows.of((7,), torch.device("cpu")), torch.float32).sine.equal(longer.sine[:7])
    assert rotations.of(many, rows, torch.bfloat16).sine.dtype == torch.bfloat16


def test_layers_with_angles_of_their_own_ask_for_as_many() -> None:
    """Only this: what such a layer is given says how many positions there are."""
    own = angles_of(6, 8, base=7.0)
    found = Rotations(lambda positions: own[:positions]).of(angles_of(4, 8), None, torch.float32)
    assert found.cosine.equal(own[:4, ..., :4].cos())
