"""One optimizer step as an update rule sees it: gradients, inner products and losses, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from megatron_ext.training.accumulator import GradientAccumulator
from megatron_ext.training.loss_terms import LossTerm
from megatron_ext.updates import Direction, Objective, Products, State, StepPosition, Vector


@dataclass(frozen=True)
class _PendingSum:
    """A loss sum of this rank that the next all-reduce carries: fp64, a scalar."""

    term: LossTerm
    total: torch.Tensor


class Step:
    """What a rule can ask for: the implementation of ``megatron_ext.updates.Step``.

    Every method is collective; every number is global and equal on every rank. After ``descend`` or ``descend_along``
    the results hold.

    Attributes:
        terms: The forget term, then the retain term if there is one.
        state: The rule's own numbers, which the rule changes in place.
        kept: Vectors that the rule keeps from step to step, by name.
        rate: The step's learning rate; a rule may set it.
        position: Where in the run the step stands.
        losses: Means at the weights before the step, by the terms' names.
        products: Inner products of the two gradients; None where they were not measured.
        update_norm: The direction's norm, after clipping; None before there is a direction.
        forget_alignment: A_f of BLUR's eq. 8, of the direction before clipping; None where it was not measured.
        retain_alignment: A_r of the same.
        note: Where the rule fell back, for the step log.
        stop: Whether some rank was asked to stop.
    """

    def __init__(
        self,
        accumulator: GradientAccumulator,
        terms: Sequence[LossTerm],
        rate: float,
        *,
        separate: bool = False,
        state: State | None = None,
        kept: dict[str, Vector] | None = None,
        position: StepPosition = StepPosition(),  # noqa: B008
        whole_retain: Callable[[], LossTerm] | None = None,
        clip_norm: float | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin a step.

        Args:
            accumulator: Takes gradients and losses.
            terms: The forget term, then the retain term if there is one.
            rate: The learning rate.
            separate: Keep the two gradients apart even for a rule that needs only their sum.
            state: The rule's own numbers.
            kept: The vectors that it keeps.
            position: Where in the run the step stands.
            whole_retain: Makes the retain term over the whole retain set.
            clip_norm: Bound on the direction's norm.
            stop_requested: Whether this rank was asked to stop; the answer travels with the step's all-reduce.
        """
        self.terms, self.rate, self.position = list(terms), rate, position
        self.state: State = {} if state is None else state
        self.kept: dict[str, Vector] = {} if kept is None else kept
        self.losses: dict[str, float] = {}
        self.products: Products | None = None
        self.note: str | None = None
        self.update_norm: float | None = None
        self.forget_alignment: float | None = None
        self.retain_alignment: float | None = None
        self.stop = False
        self._accumulator, self._space = accumulator, accumulator.space
        self._separate, self._whole_retain = separate, whole_retain
        self._clip_norm, self._stop_requested = clip_norm, stop_requested
        self._forget: Vector | None = None  # the forget gradient, where it is kept apart from the held one
        self._pending: list[_PendingSum] = []  # loss sums that were not reduced yet

    @property
    def has_retain(self) -> bool:
        """Whether there is a retain loss."""
        return len(self.terms) == 2

    # What most rules need: the two gradients, and one direction in their span.

    def measure(self) -> Products:
        """Both gradients, kept apart, and their inner products: one all-reduce of a handful of fp64 numbers."""
        if len(self.terms) == 1:
            self._accumulate([Objective.FORGET], [1.0])
            self.products = Products(self.gram(self._space.held)[0][0], 0.0, 0.0)
            return self.products
        self._forget = self._take_both()
        (ff, fr), (_, rr) = self.gram(self._forget, self._space.held)
        self.products = Products(ff, fr, rr)
        return self.products

    def descend(self, direction: Direction, adapt: Callable[[float], float] | None = None) -> float:
        """Make ``direction`` the step's, clipped.

        Without ``measure`` before (or diagnostics asked for), both gradients are accumulated in one buffer.

        Args:
            direction: Weights of the two gradients.
            adapt: Replaces the retain weight from one micro-batch of retain rows to the next: it is given the
                micro-batch's mean loss over data-parallel ranks and returns the next weight. It runs on the last
                pipeline stage and costs an all-reduce and a host synchronisation each time.

        Returns:
            The retain weight after the last micro-batch.
        """
        if adapt is None and self._separate and self.products is None:
            self.measure()
        if self.products is None:
            norm, retain_weight = self._descend_unmeasured(direction, adapt)
        else:
            norm, retain_weight = self._descend_measured(direction, self.products), direction.retain
        self.update_norm, self.note = norm * self._clip(norm), direction.note
        return retain_weight

    def _descend_unmeasured(self, direction: Direction, adapt: Callable[[float], float] | None) -> tuple[float, float]:
        """Accumulate the weighted sum at once; its norm, and the retain weight after the last micro-batch."""
        objectives = list(Objective)[: len(self.terms)]
        last = self._accumulate(objectives, [direction.forget, direction.retain][: len(self.terms)], adapt)
        reduced = self._reduce(self._space.products([self._space.held]), last)
        norm = math.sqrt(max(0.0, reduced.numbers[0]))
        self._space.combine(self._clip(norm))
        return norm, reduced.extra

    def _descend_measured(self, direction: Direction, products: Products) -> float:
        """Combine the two gradients that ``measure`` took; the direction's norm."""
        norm = products.norm_of(direction)
        clip = self._clip(norm)
        if self._forget is None:
            self._space.combine(direction.forget * clip)
        else:
            self._space.combine(direction.retain * clip, self._forget, direction.forget * clip)
            self._space.release(self._forget)
            self._forget = None
        self.forget_alignment, self.retain_alignment = products.alignments(*products.along(direction))
        return norm

    def descend_tensors(self, choose: Callable[[Products], Direction]) -> None:
        """Make a direction the step's, clipped, that is another combination of the gradients in each tensor.

        The products of all tensors come out of one all-reduce.
        """
        forget = self._take_both()
        parts = self._reduce(self._space.tensor_products([forget, self._space.held]), 0.0).numbers
        tensors = [Products(parts[i], parts[i + 1], parts[i + 3]) for i in range(0, len(parts), 4)]
        # Nothing of a tensor that is not trained, or that no token reached, tells the gradients apart.
        directions = [choose(p) if p.ff > 0 or p.rr > 0 else Direction(0.0, 0.0) for p in tensors]
        norm = math.hypot(*(p.norm_of(u) for p, u in zip(tensors, directions, strict=True)))
        self.products = Products.total(tensors)
        along = [p.along(u) for p, u in zip(tensors, directions, strict=True)]
        fu, ru = map(math.fsum, zip(*along, strict=True))
        self.forget_alignment, self.retain_alignment = self.products.alignments(fu, ru)
        self._space.combine_tensors(directions, forget, self._clip(norm))
        self._space.release(forget)
        self.update_norm = norm * self._clip(norm)
        self.note = "; ".join(sorted({u.note for u in directions if u.note})) or None

    # What rules beyond the span need.

    def gradient(self, objective: Objective) -> Vector:
        """A copy of one loss's gradient at the current weights."""
        self._accumulate([objective], [1.0])
        return self._space.copy()

    def gram(self, *vectors: Vector) -> list[list[float]]:
        """Inner products of every pair, in one all-reduce, with the loss sums of gradients taken since the last."""
        count, found = len(vectors), self._reduce(self._space.products(vectors), 0.0).numbers
        return [found[i * count : (i + 1) * count] for i in range(count)]

    def vector(self, direction: Direction) -> Vector:
        """``direction`` of the two gradients that ``measure`` took, as a vector of its own."""
        assert self._forget is not None, "measure() of both gradients comes first"
        return self.linear((direction.forget, self._forget), (direction.retain, self._space.held))

    def elementwise(self, function: Callable[..., torch.Tensor], *vectors: Vector) -> Vector:
        """A new vector: a function of the vectors' elements at each place. No collective."""
        return self._space.elementwise(function, *vectors)

    def linear(self, *terms: tuple[float, Vector]) -> Vector:
        """A new vector: the sum of coefficient times vector over ``terms``. No collective."""
        return self._space.linear(*terms)

    def weights(self) -> Vector:
        """A copy of the weights, laid out as gradients are; for fp32 weights. No collective."""
        return self._space.weights()

    def hessian_product(self, objective: Objective, vector: Vector, norm: float, reach: float) -> Vector:
        """``H v``, ``H`` the Hessian of one loss: the central difference of two gradients. For fp32 weights.

        Args:
            objective: Whose Hessian.
            vector: ``v``.
            norm: ``|v|``.
            reach: How far from the current weights the two gradients are taken.

        Returns:
            The product.
        """
        size = reach / norm
        with self.perturbed_weights(vector, size, -size) as scales:
            next(scales)
            product = self.gradient(objective)
            next(scales)
            self._accumulate([objective], [1.0])
        for ahead, behind in zip(product, self._space.held, strict=True):
            ahead.sub_(behind).mul_(0.5 / size)
        return product

    def loss(self, objective: Objective) -> float:
        """The mean loss of the step's batch at the current weights: a forward pass."""
        return self._accumulator.mean_loss(self.terms[objective])

    def whole_retain_loss(self) -> float:
        """The mean retain loss over the whole retain set at the current weights: forward passes."""
        if self._whole_retain is None:
            raise ValueError("this run has no retain set")
        return self._accumulator.mean_loss(self._whole_retain())

    @contextmanager
    def perturbed_weights(self, vector: Vector, *scales: float) -> Iterator[Iterator[float]]:
        """See ``GradientSpace.perturbed_weights``."""
        with self._space.perturbed_weights(vector, *scales) as visits:
            yield visits

    def descend_along(self, vector: Vector, *gradients: Vector, note: str | None = None) -> None:
        """Make ``vector`` the step's direction, clipped.

        Where the forget and retain gradient are given too, their products and alignments come out of the same
        all-reduce.
        """
        gram = self.gram(vector, *gradients)
        norm = math.sqrt(max(0.0, gram[0][0]))
        if gradients:
            (_, fu, ru), (_, ff, fr), (_, _, rr) = gram
            self.products = Products(ff, fr, rr)
            self.forget_alignment, self.retain_alignment = self.products.alignments(fu, ru)
        self._space.hold(vector)
        self._space.combine(self._clip(norm))
        self.update_norm, self.note = norm * self._clip(norm), note

    def _take_both(self) -> Vector:
        """Accumulate both gradients: the forget one is returned, the retain one is held."""
        self._accumulate([Objective.FORGET], [1.0])
        forget = self._space.copy()
        self._accumulate([Objective.RETAIN], [1.0])
        return forget

    def _accumulate(
        self,
        objectives: Sequence[Objective],
        weights: Sequence[float],
        adapt: Callable[[float], float] | None = None,
    ) -> float:
        terms = [self.terms[objective] for objective in objectives]
        accumulated = self._accumulator.accumulate(terms, weights, adapt)
        self._pending += [_PendingSum(term, total) for term, total in zip(terms, accumulated.sums, strict=True)]
        return accumulated.last_weight

    def _reduce(self, products: torch.Tensor, extra: float) -> _Reduced:
        """The step's one all-reduce: inner products (fp64, this rank's part), pending loss sums, one number more, and
        the wish to stop."""
        products, pending = products.flatten(), self._pending
        count = len(products)
        signals = torch.tensor([extra, float(self._stop_requested())], dtype=torch.float64, device=products.device)
        sums = [torch.stack([each.total for each in pending])] if pending else []
        own = torch.cat([products, *sums, signals])
        totals = self._space.reduce(own.clone())
        self._accumulator.refuse_non_finite(totals, own, [each.term.name for each in pending], count)
        for each, value in zip(pending, totals[count:-2], strict=True):
            self.losses.setdefault(each.term.name, value / each.term.units)  # later ones are at other weights
        self._pending = []
        self.stop = self.stop or totals[-1] > 0
        return _Reduced(totals[:count], totals[-2])

    def _clip(self, norm: float) -> float:
        return 1.0 if self._clip_norm is None else min(1.0, self._clip_norm / max(norm, 1e-30))


@dataclass(frozen=True)
class _Reduced:
    """What an all-reduce of a step brought: the inner products, and the sum of ``extra``, both over ranks."""

    numbers: list[float]
    extra: float
