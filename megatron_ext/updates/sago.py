"""SAGO: element by element, no step against the retain gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from megatron_ext.updates.base import Objective, Rule, Step

if TYPE_CHECKING:
    from torch import Tensor


class SAGO(Rule):
    """``u_i = alpha r_i`` in every element where ``f_i r_i < 0``, else ``gamma f_i``; with ``agreeing: both``, else
    ``gamma f_i + alpha r_i`` (SAGO, arXiv 2604.14808; the second is its code's ``sago_prefer_retain``).

    Signs are those of gradients that are accumulated over the global batch and reduced over ranks. ``u`` is not in the
    span of the two gradients: a step holds both of them and ``u``.
    """

    name: Literal["sago"] = "sago"

    gamma: float = Field(1.0, gt=0, description="weight of the forget gradient")
    alpha: float = Field(1.0, gt=0, description="weight of the retain gradient")
    agreeing: Literal["forget", "both"] = Field(
        "forget", description="what moves an element in which the gradients do not disagree"
    )

    @property
    def vectors(self) -> int:
        return 3

    @property
    def vectors_in_passes(self) -> int:
        return 1

    def update(self, step: Step) -> None:
        f, r = step.gradient(Objective.FORGET), step.gradient(Objective.RETAIN)
        step.descend_along(step.elementwise(self._gated, f, r), f, r)

    def _gated(self, f: Tensor, r: Tensor) -> Tensor:
        kept = self.alpha * r
        agreeing = self.gamma * f if self.agreeing == "forget" else self.gamma * f + kept
        return kept.where(f.sign() * r.sign() < 0, agreeing)  # the product of small numbers would be zero
