"""What an update rule is: from a step's gradients to the direction that its weights move along."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megatron_ext.schema import Named

if TYPE_CHECKING:
    from megatron_ext.specs import UnlearnSpec
    from megatron_ext.training.step import Step

State = dict[str, float]

# A squared norm: below it, a gradient has passed through fp32's subnormal numbers and few bits of it are left.
VANISHED = 1e-60


@dataclass(frozen=True)
class Products:
    """The Gram matrix of the reduced gradients ``f`` (forget) and ``r`` (retain).

    Global scalars in fp64, equal on every rank; ``r`` entries are 0 where there is no retain loss.
    """

    ff: float
    fr: float
    rr: float

    @classmethod
    def unknown(cls) -> Products:
        """For rules whose direction does not depend on the gradients."""
        return cls(math.nan, math.nan, math.nan)

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
    """Chooses the direction of one optimizer step.

    A rule is asked once per optimizer step, with gradients that are accumulated over micro-batches and reduced over
    data-parallel ranks. Most rules say a direction in the span of the two gradients: they implement ``direction``.
    Where it is known before the gradients are, ``needs_products`` is false: then both gradients are accumulated in one
    buffer and no second vector is held. A rule that asks for more (a state of its own, further gradients, losses at
    other weights) implements ``update`` with what ``megatron_ext.training.step.Step`` offers.
    """

    name: str
    needs_products: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = True

    @property
    def vectors(self) -> int:
        """fp32 vectors of the rank's gradient shard that a step holds at most, beside the gradient itself."""
        return int(self.needs_products)

    @property
    def gradients(self) -> int:
        """How often a step takes the gradient of each loss, at most; plans estimate its time from this."""
        return 1

    @property
    def retain_passes(self) -> int:
        """Forward passes over the whole retain set in each pass over the forget set; also for estimates."""
        return 0

    @property
    def needs_retain_reference_logps(self) -> bool:
        """Whether ``start`` needs the retain loss of the model before unlearning."""
        return False

    @property
    def extrapolation(self) -> float:
        """The run ends in ``theta_0 + extrapolation * (theta - theta_0)``, ``theta_0`` the weights before it."""
        return 1.0

    def problems(self, spec: UnlearnSpec) -> list[str]:
        """What in ``spec`` the rule does not work with: messages that begin with the key."""
        return []

    def start(self, retain_loss: float | None) -> State:
        """The rule's own state before the first step; ``retain_loss``: that of the model before unlearning over the
        whole retain set, where the run knows it. The state is saved with the run's, in fp64, equal on every rank."""
        return {}

    def direction(self, products: Products) -> Direction:
        raise TypeError(f"{type(self).__name__} has neither 'direction' nor 'update'")

    def update(self, step: Step) -> None:
        """Leave in ``step`` the direction to descend along, by ``step.descend``. Collective over all ranks."""
        if self.needs_products:
            step.measure()
            step.descend(self.direction(step.products))
        else:
            step.descend(self.direction(Products.unknown()))

    def after(self, step: Step) -> None:
        """What remains to be done once the weights have changed. Collective over all ranks."""
