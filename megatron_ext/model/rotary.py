"""Rotary position embeddings (RoFormer, arXiv 2104.09864, section 3.2.2), with angles looked up once a forward pass.

megatron-core takes the cosine and sine of every position's angles for queries and again for keys, in each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_ext.model.packing import Reading


class Rotation(NamedTuple):
    """By what numbers of each position are rotated: ``r / 2`` pairs of a head's ``d`` numbers, the first ones.

    Attributes:
        cosine: ``[S, 1, 1, r / 2]``.
        sine: ``[S, 1, 1, r / 2]``.
    """

    cosine: Tensor
    sine: Tensor


class Rotations:
    """The rotation of the forward pass under way, for all layers that rotate alike."""

    def __init__(self, angles: Callable[[int], Tensor] | None = None) -> None:
        """Rotations by the model's angles.

        Args:
            angles: From a number of positions to angles ``[positions, 1, 1, r]`` in the place of the model's; None
                for these.
        """
        self._angles = angles
        self._last: tuple[Tensor, Reading | None, torch.dtype, Rotation] | None = None

    def of(self, angles: Tensor, reading: Reading | None, dtype: torch.dtype) -> Rotation:
        """The rotation of a pass, made when its first layer asks.

        Args:
            angles: fp32 ``[positions, 1, 1, r]``, the model's, of all positions from the first; the second half of
                their numbers repeats the first.
            reading: Where the tokens stand in their texts; None where there is one for each of the positions.
            dtype: What cosines and sines are rounded to.
        """
        if self._angles is not None:
            angles = self._angles(len(angles))
        if self._last is not None:
            *asked, rotation = self._last
            if asked[0] is angles and asked[1] is reading and asked[2] is dtype:
                return rotation
        half = angles[..., : angles.size(-1) // 2]
        if reading is not None:
            half = half[reading.positions_T]
        rotation = Rotation(half.cos().to(dtype), half.sin().to(dtype))
        self._last = (angles, reading, dtype, rotation)
        return rotation


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Heads rotated: number ``i`` together with number ``i + r / 2``; those from ``r`` on stay.

    Its gradient is the rotation the other way, so that nothing but the rotation is kept for it.

    Args:
        x: ``[S, B, heads, d]``.
        rotation: Of its positions.

    Returns:
        ``[S, B, heads, d]``.
    """
    return _Rotate.apply(x, rotation)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Rotation) -> Tensor:
        ctx.rotation = rotation
        return _rotated(x, rotation.cosine, rotation.sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        back = Rotation(ctx.rotation.cosine, -ctx.rotation.sine)
        return rotate(gradient, back), None  # which has a gradient too


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = cosine.size(-1)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second = x[..., :half], x[..., half : 2 * half]
    torch.mul(first, cosine, out=out[..., :half]).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=out[..., half : 2 * half]).addcmul_(first, sine)
    out[..., 2 * half :] = x[..., 2 * half :]
    return out
