"""BLUR: descend the retain loss only along what is orthogonal to the forget gradient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_ext.updates.base import VANISHED, Direction, Products, Rule

# A squared norm in units of the retain gradient's: below it, nothing of the forget gradient is left in their sum.
_VANISHED_BESIDE = 1e-40


class Blur(Rule):
    """``u = gamma grad f + grad r - (<grad f, grad r> / |grad f|^2) grad f`` (BLUR, arXiv 2506.08164, eq. 14).

    The projection is applied whether or not the gradients agree, so that ``<grad f, u> = gamma |grad f|^2`` always. A
    forget gradient that is zero, or so small that fp32 holds no direction of it, leaves nothing to project off: then
    ``u = grad r``, and the step says so.
    """

    name: Literal["blur"] = "blur"

    gamma: float = Field(1.0, gt=0, description="share of the forget gradient that is kept")

    def direction(self, products: Products) -> Direction:
        if products.ff <= max(VANISHED, _VANISHED_BESIDE * products.rr):
            return Direction(0.0, 1.0, note="the forget gradient is zero: stepping along the retain gradient")
        return Direction(self.gamma - products.fr / products.ff, 1.0)
