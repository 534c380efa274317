"""Task-vector negation: fine-tune on the forget set, then walk the other way."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from megatron_ext.config import RunSettings
from megatron_ext.updates.base import Direction, Products, Rule


class TaskVector(Rule):
    """Descend the forget loss, which is to be ``nll``; end in ``theta_0 - alpha (theta_T - theta_0)``.

    ``theta_0`` are the weights before the run, ``theta_T`` those that it has overfitted to the forget set (task
    arithmetic, arXiv 2212.04089, section 2; as a baseline MUSE, arXiv 2407.06460).
    """

    name: Literal["task-vector"] = "task-vector"
    needs_products: ClassVar[bool] = False
    needs_retain: ClassVar[bool] = False

    alpha: float = Field(5.0, gt=0, description="how far, in lengths of the task vector")

    @property
    def extrapolation(self) -> float:
        return -self.alpha

    def problems(self, settings: RunSettings) -> list[str]:
        found = []
        if settings.forget_loss != "nll":
            found.append(f"forget_loss: {settings.forget_loss!r}; the rule 'task-vector' fine-tunes: allowed is 'nll'")
        if settings.retain_loss is not None:
            found.append(f"retain_loss: {settings.retain_loss!r}; the rule 'task-vector' takes none")
        return found

    def direction(self, products: Products) -> Direction:
        return Direction(1.0, 0.0)
