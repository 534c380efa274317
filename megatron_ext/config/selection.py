"""Validation during unlearning as a run is told of it, and which of the measured steps the run ends in."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from megatron_ext.schema import Seed, Strict


class Budget(Strict):
    """How much of what the target could do the model keeps, at least; ``metric`` is one of the validation sample."""

    metric: Literal["retain_probability", "retain_greedy_match"]
    at_least: float = Field(gt=0, le=1, description="share of the value before the first step")
    of: Literal["target"] = "target"

    def text(self) -> str:
        """The budget in words."""
        return f"{self.metric} at least {self.at_least:g} of {self.of}'s"


class WithinBudget(Strict):
    """The step with the lowest ``forget_probability`` within the budget; the run ends at a step that breaks it."""

    budget: Budget


def _kind(value: Any) -> str:
    return "mapping" if isinstance(value, dict | Strict) else "plain"


Select = Annotated[
    Annotated[Literal["last", "best-on-validation"], Tag("plain")] | Annotated[WithinBudget, Tag("mapping")],
    Discriminator(_kind),
]


BEST_WITHIN_BUDGET = "best-within-budget"  # what records say of it


class Validation(Strict):
    """A sample of each topic's forget and retain rows, drawn once, is scored before the first step of unlearning, every
    so often, and after the last step. See ``megatron_ext.training.validation``.

    Exactly one of ``every_steps`` and ``every_epochs`` says how often. ``select``: which step's weights are written.
    """

    every_steps: int | None = Field(None, ge=1, description="optimizer steps")
    every_epochs: float | None = Field(None, gt=0, description="passes over the forget set, at least a step")
    rows: int = Field(64, ge=1, description="of each topic's forget set, and of its retain set; at most all there are")
    seed: Seed = Field(0, description="of the sample")
    select: Select = "last"

    @model_validator(mode="after")
    def _one(self) -> Validation:
        if (self.every_steps is None) == (self.every_epochs is None):
            raise ValueError("give exactly one of 'every_steps' and 'every_epochs'")
        return self

    def points(self, steps: int, steps_per_epoch: int) -> list[int]:
        """After how many of a run's ``steps`` the sample is scored, in order; the first is 0, the last ``steps``."""
        every = max(1.0, self.every_steps or (self.every_epochs or 1.0) * steps_per_epoch)
        between = (round(i * every) for i in range(1, math.ceil(steps / every)))
        return sorted({0, *(point for point in between if point < steps), steps})
