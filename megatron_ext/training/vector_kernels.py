"""What BLUR does with two vectors, in one pass each of Triton's kernels, on a GPU: products and a combination.

Torch would copy fp32 to fp64 before it multiplies, and scale before it adds: five times and nearly twice the memory
traffic. ``GradientSpace`` has the same in plain torch, for CPUs, and as the truth that these are tested against.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache

import torch
from torch import Tensor

BLOCK = 4096  # elements that a program takes


@cache
def usable() -> bool:
    """Whether the kernels work here: Triton is installed, has a compiler, and three numbers come out right."""
    if importlib.util.find_spec("triton") is None:
        return False
    device = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
    a, b = torch.tensor([1.0, 2.0], device=device), torch.tensor([3.0, -1.0], device=device)
    try:
        right = products(a, b).tolist() == [5.0, 1.0, 10.0]
        combine(a, 2.0, b, 0.5)
        right = right and a.tolist() == [3.5, 3.5]
    except Exception as error:  # no C compiler, for one: Triton builds a launcher when it is first used
        print(f"Triton cannot be used ({type(error).__name__}: {error}): plain kernels instead", file=sys.stderr)
        return False
    if not right:
        print("Triton computes something else here: plain kernels instead", file=sys.stderr)
    return right


def products(a: Tensor, b: Tensor) -> Tensor:
    """``[a.a, a.b, b.b]`` in fp64, of one pass over memory; repeats to the bit.

    Args:
        a: fp32 or bf16 ``[n]``, contiguous.
        b: fp32 or bf16 ``[n]``, contiguous.

    Returns:
        fp64 ``[3]``.
    """
    from megatron_ext.training import triton_kernels

    partial = torch.empty(_programs(a), 3, dtype=torch.float64, device=a.device)
    triton_kernels.products[(len(partial),)](a, b, partial, a.numel(), BLOCK)
    return partial.sum(0)


def combine(held: Tensor, scale: float, other: Tensor, other_scale: float) -> None:
    """``held <- scale * held + other_scale * other``, of one pass over memory.

    Args:
        held: fp32 or bf16 ``[n]``, contiguous.
        scale: Its factor.
        other: fp32 or bf16 ``[n]``, contiguous.
        other_scale: Its factor.
    """
    from megatron_ext.training import triton_kernels

    triton_kernels.combine[(_programs(held),)](held, other, scale, other_scale, held.numel(), BLOCK)


def _programs(vector: Tensor) -> int:
    return -(-vector.numel() // BLOCK)
