"""NGDiff: both gradients at length one, and a learning rate that follows the retain loss's curvature."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from megatron_ext.config import RunSettings
from megatron_ext.schema import Strict
from megatron_ext.updates.base import VANISHED, Direction, Objective, Products, Rule, Step


class AutomaticRate(Strict):
    """Where the parabola through the retain loss at ``theta + rate u``, ``theta`` and ``theta - rate u`` is lowest."""

    every: int = Field(10, ge=1, description="optimizer steps from one look to the next")
    lowest: float = Field(1e-7, gt=0, description="bound on the rate")
    highest: float = Field(1e-3, gt=0, description="bound on the rate")

    @model_validator(mode="after")
    def _ordered(self) -> AutomaticRate:
        if self.lowest > self.highest:
            raise ValueError(f"lowest: {self.lowest} is above highest: {self.highest}")
        return self

    def next(self, rate: float, ahead: float, here: float, behind: float) -> float:
        """A tenth of the way from ``rate`` to the parabola's lowest point; ``rate`` where it has none ahead; within
        the bounds.

        That point is taken for no less than half the rate and no more than twice the rate: where the curvature nearly
        vanishes it is anywhere. Both are as in the authors' package for GeN (gen_optim 0.1.1, ``lr_parabola``).

        ``ahead``, ``here``, ``behind``: the loss at ``theta - rate u``, ``theta`` and ``theta + rate u``.
        """
        curvature, descent = ahead - 2 * here + behind, behind - ahead
        if curvature > 0 and descent > 0:
            point = min(2.0, max(0.5, descent / (2 * curvature))) * rate
            rate = 0.9 * rate + 0.1 * point
        return min(self.highest, max(self.lowest, rate))


class NGDiff(Rule):
    """``u = grad r / |grad r| + grad f / |grad f|`` with ``f`` to be minimised: for the ``ga`` loss, the paper's
    difference of the normalised gradients of two log-likelihoods (NGDiff, arXiv 2410.22086).

    Norms are the global gradient's, so that ``|u|^2 = 2 + 2 cos``. A gradient that is zero is left out, and the step
    says so. ``automatic_rate`` (GeN, as the paper names it) costs two forward passes over the retain batch and two
    vectors every ``every`` steps; it needs plain gradient descent, so that what it looks at is the step that is taken.
    State with it: ``rate``, from the first step on.
    """

    name: Literal["ngdiff"] = "ngdiff"

    automatic_rate: AutomaticRate | None = Field(
        None, description="take the learning rate from the retain loss's curvature"
    )

    @property
    def vectors(self) -> int:
        return 1 if self.automatic_rate is None else 3

    @property
    def gradients(self) -> int:
        return 1 if self.automatic_rate is None else 2  # two more forward passes are less than one more gradient

    def problems(self, settings: RunSettings) -> list[str]:
        if self.automatic_rate is None:
            return []
        optimizer, schedule = settings.optimizer, settings.optimizer.schedule
        wanted = {
            "optimizer.name": (optimizer.name, "sgd"),
            "optimizer.schedule.kind": (schedule.kind, "constant"),
            "optimizer.schedule.warmup_steps": (schedule.warmup_steps, 0),
            "optimizer.weight_decay": (optimizer.weight_decay, 0.0),
            "optimizer.clip_norm": (optimizer.clip_norm, None),
            "warmup_epochs": (settings.warmup_epochs, 0.0),
            "runtime.precision": (settings.precision, "fp32"),
        }
        return [
            f"{key}: {given!r} with the rule's automatic_rate; allowed is {allowed!r}"
            for key, (given, allowed) in wanted.items()
            if given != allowed
        ]

    def direction(self, products: Products) -> Direction:
        gone = {"forget": products.ff <= VANISHED, "retain": products.rr <= VANISHED}
        note = " and ".join(f"the {name} gradient is zero" for name, zero in gone.items() if zero) or None
        return Direction(
            0.0 if gone["forget"] else 1 / math.sqrt(products.ff),
            0.0 if gone["retain"] else 1 / math.sqrt(products.rr),
            note,
        )

    def update(self, step: Step) -> None:
        u = self.direction(step.measure())
        if self.automatic_rate is not None:
            rate = step.state.get("rate", step.rate)
            if step.position.step % self.automatic_rate.every == 0:
                here = step.losses["retain_loss"]
                with step.perturbed_weights(step.vector(u), -rate, rate) as scales:
                    ahead, behind = [step.loss(Objective.RETAIN) for _ in scales]
                rate = self.automatic_rate.next(rate, ahead, here, behind)
            step.rate = step.state["rate"] = rate
        step.descend(u)
