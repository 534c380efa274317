"""The weighted sum of the two gradients: gradient ascent, GradDiff, NPO, SimNPO, RMU."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from megatron_ext.updates.base import Direction, Products, Rule


class WeightedSum(Rule):
    """``u = forget_weight * grad f + retain_weight * grad r``; with no retain loss, ``u = forget_weight * grad f``."""

    name: Literal["weighted-sum"] = "weighted-sum"
    needs_products: ClassVar[bool] = False
    needs_retain: ClassVar[bool] = False

    forget_weight: float = Field(1.0, gt=0, description="weight of the forget gradient")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain gradient")

    def direction(self, products: Products) -> Direction:
        return Direction(self.forget_weight, self.retain_weight)
