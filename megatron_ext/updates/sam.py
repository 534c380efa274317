"""Sharpness-aware minimisation of the forget loss: its gradient is taken where the loss is worst nearby."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from megatron_ext.config import RunSettings
from megatron_ext.updates.base import VANISHED, Objective, Rule, Step


class SAM(Rule):
    """``u = forget_weight * grad f(theta + rho g / |g|) + retain_weight * grad r(theta)`` with ``g = grad f(theta)``
    (NPO+SAM, arXiv 2502.05374, for any forget loss).

    The weights are moved, and put back to the bit. They need to be fp32: bf16 weights would round almost all of so
    small a displacement away. Costs a second gradient of the forget loss.
    """

    name: Literal["sam"] = "sam"
    needs_retain: ClassVar[bool] = False

    rho: float = Field(0.01, gt=0, description="length of the displacement")
    forget_weight: float = Field(1.0, gt=0, description="weight of the forget gradient")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain gradient")

    @property
    def vectors(self) -> int:
        return 4

    @property
    def vectors_in_passes(self) -> int:
        return 2

    @property
    def gradients(self) -> int:
        return 2

    def problems(self, settings: RunSettings) -> list[str]:
        if settings.precision == "fp32":
            return []
        return [f"runtime.precision: {settings.precision!r}; the rule 'sam' needs 'fp32'"]

    def update(self, step: Step) -> None:
        f = step.gradient(Objective.FORGET)
        ((square,),) = step.gram(f)
        note = None
        if square > VANISHED:
            with step.perturbed_weights(f, self.rho / math.sqrt(square)) as visits:
                next(visits)
                worst = step.gradient(Objective.FORGET)
            del visits  # it knows the weights of before, which would be a vector more
        else:
            worst, note = f, "the forget gradient is zero: there is no direction to look into"
        if step.has_retain:
            r = step.gradient(Objective.RETAIN)
            step.descend_along(step.linear((self.forget_weight, worst), (self.retain_weight, r)), f, r, note=note)
        else:
            step.descend_along(step.linear((self.forget_weight, worst)), note=note)
