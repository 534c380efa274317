"""GRU: the forget gradient without its part against a moving average of the retain gradients."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from megatron_ext.updates.base import VANISHED, Objective, Rule, Step

MEAN = "retain_mean"


class GRU(Rule):
    """``u = f - (<f, m> / |m|^2) m + retain_weight * r`` where ``<f, m> < 0``, else ``f + retain_weight * r``, with
    ``f`` and ``r`` the two gradients and ``m <- mu r + (1 - mu) m``, from 0, before that (GRU, arXiv 2503.09117).

    ``lowest_cosine`` bounds the cosine of ``f`` and ``m`` from below in the projection, as an option of the published
    code does with -0.5, so that less is taken away from a gradient that is against ``m`` altogether. The paper's rule
    has no retain gradient of its own; its code's losses with ``+ce`` have.

    ``m`` is a vector that the rule keeps: sharded as the gradient is, and part of the resume state.
    """

    name: Literal["gru"] = "gru"

    mu: float = Field(0.8, gt=0, le=1, description="share of the step's own retain gradient in the average")
    lowest_cosine: float | None = Field(None, gt=-1, lt=0, description="bound on the cosine in the projection")
    retain_weight: float = Field(0.0, ge=0, description="weight of the step's own retain gradient in the direction")

    @property
    def vectors(self) -> int:
        return 4

    @property
    def vectors_in_passes(self) -> int:
        return 2

    def update(self, step: Step) -> None:
        f, r = step.gradient(Objective.FORGET), step.gradient(Objective.RETAIN)
        before = [(1 - self.mu, step.kept[MEAN])] if MEAN in step.kept else []
        mean = step.kept[MEAN] = step.linear((self.mu, r), *before)
        del before  # the last step's mean, or it would be a vector more
        (ff, fm), (_, mm) = step.gram(f, mean)
        terms, note = [(1.0, f)], None
        if mm <= VANISHED:
            note = "the retain gradients are zero: stepping along the forget gradient"
        elif fm < 0:
            cosine = fm / math.sqrt(ff * mm)
            if self.lowest_cosine is not None:
                cosine = max(cosine, self.lowest_cosine)
            terms.append((-cosine * math.sqrt(ff / mm), mean))
        if self.retain_weight > 0:
            terms.append((self.retain_weight, r))
        step.descend_along(step.linear(*terms), f, r, note=note)
