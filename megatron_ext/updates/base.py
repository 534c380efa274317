"""What an update rule is: from inner products of the two gradients to one direction in their span."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from megatron_ext.schema import Named


@dataclass(frozen=True)
class Products:
    """The Gram matrix of the reduced gradients ``f`` (forget) and ``r`` (retain), and their losses.

    Global scalars in fp64, equal on every rank; ``r`` entries are 0 where there is no retain loss.
    """

    ff: float
    fr: float
    rr: float
    forget_loss: float
    retain_loss: float | None

    @classmethod
    def unknown(cls) -> Products:
        """For rules whose direction does not depend on the gradients."""
        return cls(math.nan, math.nan, math.nan, math.nan, None)

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two gradients; None where one of them is zero."""
        return self.fr / math.sqrt(self.ff * self.rr) if self.ff > 0 and self.rr > 0 else None

    def norm_of(self, u: Direction) -> float:
        """``|u|``."""
        square = u.forget**2 * self.ff + 2 * u.forget * u.retain * self.fr + u.retain**2 * self.rr
        return math.sqrt(max(0.0, square))

    def forget_alignment(self, u: Direction) -> float | None:
        """``A_f = <f, u> / |f|^2`` (BLUR, arXiv 2506.08164, eq. 8)."""
        return (u.forget * self.ff + u.retain * self.fr) / self.ff if self.ff > 0 else None

    def retain_alignment(self, u: Direction) -> float | None:
        """``A_r = <r, u> / |r|^2`` (BLUR, arXiv 2506.08164, eq. 8)."""
        return (u.forget * self.fr + u.retain * self.rr) / self.rr if self.rr > 0 else None


@dataclass(frozen=True)
class Direction:
    """``u = forget * f + retain * r``, to be descended along; ``note`` says where a rule fell back."""

    forget: float
    retain: float
    note: str | None = None


class Rule(Named):
    """Chooses the direction of one optimizer step from the step's inner products.

    A rule is called once per optimizer step with gradients that are accumulated over micro-batches and reduced over
    data-parallel ranks. ``needs_products`` is false where the direction is known before the gradients are: then both
    gradients are accumulated in one buffer and no second vector is held.
    """

    name: str
    needs_products: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = True

    def direction(self, products: Products) -> Direction:
        raise TypeError(f"{type(self).__name__} is abstract")
