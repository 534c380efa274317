"""OFMU: forget in an inner loop, then preserve what is retained without leaving where the inner loop came to rest."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from megatron_ext.config import RunSettings
from megatron_ext.updates.base import VANISHED, Objective, Products, Rule, State, Step, Vector

# Below this, 1 - cos^2 of two gradients is rounding.
_PARALLEL = 1e-12


class OFMU(Rule):
    """``inner_steps`` steps down ``phi``, then one down ``r + penalty * |grad phi|^2``, in turn, each an optimizer step
    with a batch of its own (OFMU, ICLR 2026, OpenReview ZDuyNJI56H).

    ``phi = f - beta * cos(grad f, grad r)``, with ``f`` to be minimised. The paper ascends ``Phi = L_f - beta * Sim``
    of a loss to be raised: with ``f = -L_f`` the cosine changes its sign with ``f``, so ``phi = -Phi``, and
    ``|grad phi| = |grad Phi|``. With ``H`` the Hessians and ``c`` the cosine,

        grad phi = grad f - beta (H_f a + H_r b),    a = (r/|r| - c f/|f|) / |f|,    b = (f/|f| - c r/|r|) / |r|,
        outer u  = grad r + 2 penalty H_f grad phi.

    Ours, not the paper's: products with ``H`` are central differences of gradients at ``theta +- e v``, with ``|e v| =
    difference * |theta|``; the outer step takes ``H_f`` for the Hessian of ``phi``, which leaves out third derivatives;
    both loops share the run's optimizer; all default values. Against double backward, the default ``difference`` erred
    by at most 0.2 % of the second-order part, on a random model of 30 thousand parameters and on a fitted one of 3
    million; 1e-3 missed the latter's outer product by 98 %. Parallel gradients have no ``a`` and ``b``.

    Cost in gradient evaluations: 6 an inner step and 8 an outer one; where ``beta`` is 0, 1 and 4 (a weighted sum: 2);
    up to 6 fp32 vectors of the rank's gradient shard. State: ``penalty``; ``phase``, inner steps taken in this turn.
    """

    name: Literal["ofmu"] = "ofmu"

    beta: float = Field(0.1, ge=0, description="weight of the angle between the gradients")
    inner_steps: int = Field(3, ge=1, description="optimizer steps down phi for each outer one")
    inner_rate: float = Field(1.0, gt=0, description="the inner steps' learning rate, in units of the outer step's")
    penalty: float = Field(0.01, gt=0, description="weight of the squared gradient of phi in the first outer step")
    growth: float = Field(1.1, ge=1, description="of the penalty, after each outer step")
    highest_penalty: float | None = Field(None, gt=0, description="bound on the penalty")
    difference: float = Field(1e-5, gt=0, lt=1, description="displacement for Hessian products, as a share of |theta|")

    @model_validator(mode="after")
    def _ordered(self) -> OFMU:
        if self.highest_penalty is not None and self.highest_penalty < self.penalty:
            raise ValueError(f"highest_penalty: {self.highest_penalty} is below penalty: {self.penalty}")
        return self

    @property
    def vectors(self) -> int:
        return 6

    @property
    def gradients(self) -> int:
        return 4  # 8 of the two losses in an outer step

    def problems(self, settings: RunSettings) -> list[str]:
        found, turn = [], self.inner_steps + 1
        if settings.precision != "fp32":
            found.append(f"runtime.precision: {settings.precision!r}; the rule 'ofmu' needs 'fp32'")
        if math.gcd(turn, settings.topics) > 1:
            topics = f"{settings.topics} topics"
            found.append(f"inner_steps: {self.inner_steps} with {topics}: some would never have an outer step")
        return found

    def start(self, retain_loss: float | None) -> State:
        return {"penalty": self.penalty, "phase": 0.0}

    def update(self, step: Step) -> None:
        state = step.state
        outer = state["phase"] == self.inner_steps
        if self.beta == 0 and not outer:
            step.descend_along(step.gradient(Objective.FORGET))
        else:
            self._descend(step, outer)
        step.rate *= 1.0 if outer else self.inner_rate
        state["phase"] = 0.0 if outer else state["phase"] + 1
        if outer:
            state["penalty"] = min(state["penalty"] * self.growth, self.highest_penalty or math.inf)

    def _descend(self, step: Step, outer: bool) -> None:
        f, r = step.gradient(Objective.FORGET), step.gradient(Objective.RETAIN)
        (ff, fr, _), (_, rr, _), (_, _, squared_weights) = step.gram(f, r, step.weights())
        reach = self.difference * math.sqrt(squared_weights)
        u, note = self._inner(step, f, r, Products(ff, fr, rr), reach)
        if outer:
            norm = math.sqrt(step.gram(u)[0][0])
            if norm**2 > VANISHED:
                product = step.hessian_product(Objective.FORGET, u, norm, reach)
                u = step.linear((1.0, r), (2 * step.state["penalty"], product))
            else:
                u, note = r, "the gradient of phi is zero: stepping along the retain gradient"
        step.descend_along(u, f, r, note=note)

    def _inner(self, step: Step, f: Vector, r: Vector, p: Products, reach: float) -> tuple[Vector, str | None]:
        """The gradient of phi, and a note where it is not the whole of it."""
        if self.beta == 0:
            return f, None
        cosine = p.cosine
        if cosine is None or p.ff <= VANISHED or p.rr <= VANISHED:
            return f, "a gradient is zero: there is no angle to change"
        spread = 1 - cosine**2
        if spread <= _PARALLEL:
            return f, None
        terms = [(1.0, f)]
        across = 1 / math.sqrt(p.ff * p.rr)
        for objective, own, other, square in ((Objective.FORGET, f, r, p.ff), (Objective.RETAIN, r, f, p.rr)):
            v = step.linear((across, other), (-p.fr * across / square, own))
            terms.append((-self.beta, step.hessian_product(objective, v, math.sqrt(spread / square), reach)))
        return step.linear(*terms), None
