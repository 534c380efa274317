"""One optimizer step as an update rule sees it: gradients, inner products and losses, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from megatron_ext.training.gradients import Vector
from megatron_ext.updates import Direction, Products, State

if TYPE_CHECKING:
    from megatron_ext.training.trainer import LossTerm, Trainer


@dataclass(frozen=True)
class StepPosition:
    """Where in the run a step stands: its number, the pass over the forget set that it belongs to (from 0), and
    whether that pass ends with it."""

    step: int = 0
    epoch: int = 0
    ends_epoch: bool = False


class Step:
    """What a rule can ask for. Every method is collective; every number is global and equal on every rank.

    ``state``: the rule's own numbers, which the rule changes in place. ``rate``: the step's learning rate; a rule may
    set it. After ``descend`` the results hold: ``losses``, ``update_norm``, and, where they were measured,
    ``products``, ``forget_alignment`` and ``retain_alignment``.
    """

    def __init__(
        self,
        trainer: Trainer,
        terms: Sequence[LossTerm],
        rate: float,
        separate: bool,
        state: State,
        place: StepPosition,
        whole_retain: Callable[[], LossTerm] | None = None,
    ) -> None:
        self.trainer, self.terms, self.space = trainer, list(terms), trainer.space
        self.rate, self.separate, self.state, self.place = rate, separate, state, place
        self._whole_retain = whole_retain
        self.losses: dict[str, float] = {}
        self.products: Products | None = None
        self.note: str | None = None
        self.update_norm = math.nan
        self.forget_alignment: float | None = None
        self.retain_alignment: float | None = None
        self.stop = False
        self._forget: Vector | None = None  # the forget gradient, where it is kept apart from the held one
        self._pending: list[tuple[str, torch.Tensor, float]] = []  # loss sums not reduced yet
        self._extra = 0.0

    # What most rules need: the two gradients, and one direction in their span.

    def measure(self) -> None:
        """Both gradients, kept apart, and their inner products: one all-reduce of a handful of fp64 numbers."""
        self._accumulate([0], [1.0])
        vectors = [self.space.held]
        if len(self.terms) == 2:
            self._forget = self.space.copy()
            vectors = [self._forget, self.space.held]
            self._accumulate([1], [1.0])
        gram = self.gram(*vectors)
        two = len(vectors) == 2
        self.products = Products(gram[0][0], gram[0][1] if two else 0.0, gram[1][1] if two else 0.0)

    def descend(self, direction: Direction, adapt: Callable[[float], float] | None = None) -> float:
        """Make ``direction`` the step's, clipped. Without ``measure`` before (or diagnostics asked for), both gradients
        are accumulated in one buffer.

        ``adapt`` replaces the retain weight from one micro-batch of retain rows to the next: it is given the
        micro-batch's mean loss over data-parallel ranks and returns the next weight; it runs on the last pipeline stage
        and costs an all-reduce and a host synchronisation each time. Returns the retain weight after the last.
        """
        retain_weight = direction.retain
        if adapt is None and self.separate and self.products is None:
            self.measure()
        if self.products is None:
            weights = [direction.forget, direction.retain][: len(self.terms)]
            last = self._accumulate(list(range(len(self.terms))), weights, adapt)
            (square,), *_ = self.gram(self.space.held, extra=last)
            norm = math.sqrt(max(0.0, square))
            retain_weight = self._extra
            self.space.combine(self._clip(norm))
        else:
            p = self.products
            norm = p.norm_of(direction)
            clip = self._clip(norm)
            if self._forget is None:
                self.space.combine(direction.forget * clip)
            else:
                self.space.combine(direction.retain * clip, self._forget, direction.forget * clip)
            self.forget_alignment, self.retain_alignment = p.forget_alignment(direction), p.retain_alignment(direction)
        if self._forget is not None:
            self.space.release(self._forget)
            self._forget = None
        self.update_norm, self.note = norm * self._clip(norm), direction.note
        return retain_weight

    # What rules beyond the span need.

    def gradient(self, which: int) -> Vector:
        """A copy of the gradient of the forget (0) or retain (1) loss at the current weights."""
        self._accumulate([which], [1.0])
        return self.space.copy()

    def gram(self, *vectors: Vector, extra: float = 0.0) -> list[list[float]]:
        """Inner products of every pair, in one all-reduce, with the loss sums of gradients taken since the last."""
        trainer, count = self.trainer, len(vectors)
        products = self.space.products(vectors).flatten()
        sums = [total for _, total, _ in self._pending]
        own = torch.tensor([extra, float(trainer.stop_requested)], dtype=torch.float64, device=products.device)
        mine = torch.cat([products, torch.stack(sums), own]) if sums else torch.cat([products, own])
        numbers = self.space.reduce(mine.clone())
        names = [name for name, _, _ in self._pending]
        trainer.refuse_non_finite(numbers, mine, names, count * count)
        for (name, _, units), value in zip(self._pending, numbers[count * count : -2], strict=True):
            self.losses.setdefault(name, value / units)  # later ones are at moved weights
        self._pending.clear()
        self._extra, self.stop = numbers[-2], self.stop or numbers[-1] > 0
        return [numbers[i * count : (i + 1) * count] for i in range(count)]

    def vector(self, direction: Direction) -> Vector:
        """``direction`` of the two gradients that ``measure`` took, as a vector of its own."""
        assert self._forget is not None, "measure() of both gradients comes first"
        return self.space.linear((direction.forget, self._forget), (direction.retain, self.space.held))

    def hessian_product(self, which: int, vector: Vector, norm: float, reach: float) -> Vector:
        """``H v``, ``H`` the Hessian of the forget (0) or retain (1) loss and ``norm`` that of ``v``: the central
        difference of two gradients at weights ``reach`` away. For fp32 weights."""
        size = reach / norm
        with self.moved(vector, size, -size) as visits:
            next(visits)
            found = self.gradient(which)
            next(visits)
            self._accumulate([which], [1.0])
        for mine, behind in zip(found, self.space.held, strict=True):
            mine.sub_(behind).mul_(0.5 / size)
        return found

    def loss(self, which: int) -> float:
        """The mean forget (0) or retain (1) loss of the step's batch at the current weights: a forward pass."""
        return self.trainer.mean_loss(self.terms[which])

    def whole_retain_loss(self) -> float:
        """The mean retain loss over the whole retain set at the current weights: forward passes."""
        if self._whole_retain is None:
            raise ValueError("this run has no retain set")
        return self.trainer.mean_loss(self._whole_retain())

    @contextmanager
    def moved(self, vector: Vector, *scales: float) -> Iterator[Iterator[float]]:
        """See ``GradientSpace.moved``."""
        with self.space.moved(vector, *scales) as visits:
            yield visits

    def descend_along(self, vector: Vector, *gradients: Vector, note: str | None = None) -> None:
        """Make ``vector`` the step's direction, clipped. Where the forget and retain gradient are given too, their
        products and alignments come out of the same all-reduce."""
        gram = self.gram(vector, *gradients)
        norm = math.sqrt(max(0.0, gram[0][0]))
        if gradients:
            (_, fu, ru), (_, ff, fr), (_, _, rr) = gram
            self.products = Products(ff, fr, rr)
            self.forget_alignment, self.retain_alignment = fu / ff if ff > 0 else None, ru / rr if rr > 0 else None
        self.space.hold(vector)
        self.space.combine(self._clip(norm))
        self.update_norm, self.note = norm * self._clip(norm), note

    def _accumulate(
        self, which: Sequence[int], weights: Sequence[float], adapt: Callable[[float], float] | None = None
    ) -> float:
        terms = [self.terms[i] for i in which]
        sums, last = self.trainer.accumulate(terms, weights, adapt)
        self._pending += [(term.name, total, term.units) for term, total in zip(terms, sums, strict=True)]
        return last

    def _clip(self, norm: float) -> float:
        bound = self.trainer.spec.clip_norm
        return 1.0 if bound is None else min(1.0, bound / max(norm, 1e-30))
