"""The kernels of ``vector_kernels``; to be imported where Triton is installed."""

import triton
import triton.language as tl


@triton.jit
def products(a, b, partial, count, block: tl.constexpr):  # type: ignore[no-untyped-def] # Triton gives the types
    """Store ``[a.a, a.b, b.b]`` of each program's block into its row of ``partial``: fp64 products of fp32 numbers."""
    program = tl.program_id(0).to(tl.int64)
    places = program * block + tl.arange(0, block)
    x = tl.load(a + places, mask=places < count, other=0.0).to(tl.float64)
    y = tl.load(b + places, mask=places < count, other=0.0).to(tl.float64)
    tl.store(partial + 3 * program, tl.sum(x * x, axis=0))
    tl.store(partial + 3 * program + 1, tl.sum(x * y, axis=0))
    tl.store(partial + 3 * program + 2, tl.sum(y * y, axis=0))


@triton.jit
def combine(held, other, scale, other_scale, count, block: tl.constexpr):  # type: ignore[no-untyped-def] # as above
    """``held <- scale * held + other_scale * other``, a block a program."""
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = places < count
    x = tl.load(held + places, mask=inside).to(tl.float32)
    y = tl.load(other + places, mask=inside).to(tl.float32)
    tl.store(held + places, scale * x + other_scale * y, mask=inside)
