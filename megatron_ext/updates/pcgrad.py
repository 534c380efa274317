"""PCGrad for unlearning: where the gradients disagree, the forget gradient loses its part against the retain one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_ext.updates.base import VANISHED, Direction, Products, Rule


class PCGrad(Rule):
    """``u = gamma (f - (<f, r> / |r|^2) r) + alpha r`` where ``<f, r> < 0``, else ``gamma f + alpha r``, with ``f`` and
    ``r`` the two gradients (PCGrad, arXiv 2001.06782, with the retain loss first, as in SAGO, arXiv 2604.14808).

    ``scope`` says what ``f`` and ``r`` are: the whole gradients, or those of each tensor of the checkpoint, projected
    by itself. The published code has both and calls the second module-wise. It adds 1e-10 to ``|r|^2``; here a retain
    gradient of which fp32 holds no direction leaves nothing to project off.
    """

    name: Literal["pcgrad"] = "pcgrad"

    gamma: float = Field(1.0, gt=0, description="weight of the forget gradient")
    alpha: float = Field(1.0, ge=0, description="weight of the retain gradient")
    scope: Literal["global", "tensor"] = Field(
        "global", description="project the whole gradient, or each tensor's by itself"
    )

    @property
    def per_tensor(self) -> bool:
        return self.scope == "tensor"

    def direction(self, products: Products) -> Direction:
        if products.fr >= 0 or products.rr <= VANISHED:
            return Direction(self.gamma, self.alpha)
        return Direction(self.gamma, self.alpha - self.gamma * products.fr / products.rr)
