"""What an update rule is: from a step's gradients to the direction that its weights move along."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from megatron_ext.config import RunSettings
from megatron_ext.schema import Named

if TYPE_CHECKING:
    from torch import Tensor

# A rule's own numbers.
State = dict[str, float]

# A vector in the space of gradients: this rank's flat fp32 pieces of it, one for each gradient bucket.
Vector: TypeAlias = "list[Tensor]"

# A squared norm: below it, a gradient has passed through fp32's subnormal numbers and few bits of it are left.
VANISHED = 1e-60


class Objective(IntEnum):
    """One of an unlearning run's two sets, its loss and its gradient."""

    FORGET = 0
    RETAIN = 1


@dataclass(frozen=True)
class StepPosition:
    """Where in the run a step stands.

    Attributes:
        step: The step's number, from 0.
        epoch: The pass over the forget set that it belongs to, from 0.
        ends_epoch: Whether that pass ends with it.
        trainer_passes: Where steps are those of transformers' Trainer, for each micro-batch the passes that Trainer
            counted when the last pass before it ended; else empty.
    """

    step: int = 0
    epoch: int = 0
    ends_epoch: bool = False
    trainer_passes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Products:
    """The Gram matrix of the reduced gradients ``f`` (forget) and ``r`` (retain).

    Global scalars in fp64, equal on every rank; ``r`` entries are 0 where there is no retain loss.
    """

    ff: float
    fr: float
    rr: float

    @classmethod
    def unknown(cls) -> Products:
        """For rules whose direction does not depend on the gradients."""
        return cls(math.nan, math.nan, math.nan)

    @classmethod
    def total(cls, parts: Iterable[Products]) -> Products:
        """Of the gradients whose parts have these products."""
        return cls(*map(math.fsum, zip(*((p.ff, p.fr, p.rr) for p in parts), strict=True)))

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two gradients; None where one of them is zero."""
        return self.fr / math.sqrt(self.ff * self.rr) if self.ff > 0 and self.rr > 0 else None

    def norm_of(self, u: Direction) -> float:
        """``|u|``."""
        square = u.forget**2 * self.ff + 2 * u.forget * u.retain * self.fr + u.retain**2 * self.rr
        return math.sqrt(max(0.0, square))

    def along(self, u: Direction) -> tuple[float, float]:
        """``<f, u>`` and ``<r, u>``."""
        return u.forget * self.ff + u.retain * self.fr, u.forget * self.fr + u.retain * self.rr

    def alignments(self, fu: float, ru: float) -> tuple[float | None, float | None]:
        """``A_f = <f, u> / |f|^2`` and ``A_r = <r, u> / |r|^2`` (BLUR, arXiv 2506.08164, eq. 8) of ``fu`` = ``<f, u>``
        and ``ru`` = ``<r, u>``; None where the gradient is zero."""
        return fu / self.ff if self.ff > 0 else None, ru / self.rr if self.rr > 0 else None


@dataclass(frozen=True)
class Direction:
    """``u = forget * f + retain * r``, to be descended along; ``note`` says where a rule fell back."""

    forget: float
    retain: float
    note: str | None = None


class Step(Protocol):
    """What a rule can ask of an optimizer step, whatever the layout. ``megatron_ext.training.step`` implements it.

    Every method is collective over all ranks. Every number is global, and equal on every rank. Gradients are those of
    the mean loss over the global batch.

    Attributes:
        state: The rule's own numbers; the rule changes them in place.
        kept: Vectors that the rule keeps from one step to the next, by name; the rule sets them. They are part of the
            resume state; before the first step there are none.
        rate: The step's learning rate; a rule may set it.
    """

    state: State
    kept: dict[str, Vector]
    rate: float

    @property
    def position(self) -> StepPosition:
        """Where in the run the step stands."""

    @property
    def has_retain(self) -> bool:
        """Whether the run has a retain loss."""

    @property
    def losses(self) -> Mapping[str, float]:
        """``forget_loss`` and ``retain_loss``, means at the weights before the step, once they were measured."""

    # What most rules need: the two gradients, and one direction in their span.

    def measure(self) -> Products:
        """Take both gradients, keep them apart, and return their inner products."""

    def descend(self, direction: Direction, adapt: Callable[[float], float] | None = None) -> float:
        """Make ``direction`` the step's.

        Args:
            direction: Weights of the two gradients.
            adapt: Replaces the retain weight from one retain micro-batch to the next: given the micro-batch's mean
                loss over data-parallel ranks, it returns the next weight.

        Returns:
            The retain weight after the last micro-batch.
        """

    def descend_tensors(self, choose: Callable[[Products], Direction]) -> None:
        """Make a direction the step's that is another combination of the two gradients in each Hugging Face tensor.

        Args:
            choose: Gives the direction within a tensor, from the products of the gradients' parts in it; it is not
                asked for tensors where both are zero.
        """

    # What rules beyond the span need.

    def gradient(self, objective: Objective) -> Vector:
        """A copy of one loss's gradient at the current weights."""

    def vector(self, direction: Direction) -> Vector:
        """A direction in the span of the two gradients that ``measure`` took, as a vector of its own."""

    def weights(self) -> Vector:
        """A copy of the weights."""

    def linear(self, *terms: tuple[float, Vector]) -> Vector:
        """A new vector: the sum of coefficient times vector over ``terms``."""

    def elementwise(self, function: Callable[..., Tensor], *vectors: Vector) -> Vector:
        """A new vector: ``function`` of the vectors' elements at each place. It is given stretches of them, as tensors
        of one dimension, and returns a tensor of that length."""

    def gram(self, *vectors: Vector) -> list[list[float]]:
        """The inner products of every pair of ``vectors``, in one all-reduce."""

    def hessian_product(self, objective: Objective, vector: Vector, norm: float, reach: float) -> Vector:
        """``H v`` with ``H`` the Hessian of one loss, by a difference of two gradients.

        Args:
            objective: Whose Hessian.
            vector: ``v``.
            norm: ``|v|``.
            reach: How far from the current weights the two gradients are taken.

        Returns:
            The product.
        """

    def perturbed_weights(self, vector: Vector, *scales: float) -> AbstractContextManager[Iterator[float]]:
        """Within the context, iterate over ``scales`` with the weights at ``theta + scale * vector``.

        After the context the weights are ``theta`` again, to the bit.
        """

    def loss(self, objective: Objective) -> float:
        """The mean loss of the step's batch at the current weights: a forward pass."""

    def whole_retain_loss(self) -> float:
        """The mean retain loss over the whole retain set at the current weights: forward passes."""

    def descend_along(self, vector: Vector, *gradients: Vector, note: str | None = None) -> None:
        """Make ``vector`` the step's direction.

        Args:
            vector: The direction.
            *gradients: The forget and the retain gradient, where their products and alignments are to be logged.
            note: For the step log: where the rule fell back.
        """


class Rule(Named):
    """Chooses the direction of one optimizer step.

    A rule is asked once per optimizer step, with gradients that are accumulated over micro-batches and reduced over
    data-parallel ranks. Most rules say a direction in the span of the two gradients: they implement ``direction``.
    Where it is known before the gradients are, ``needs_products`` is false: then both gradients are accumulated in one
    buffer and no second vector is held. A rule that asks for more (a state of its own, further gradients, losses at
    other weights) implements ``update`` with what ``Step`` offers.
    """

    name: str
    needs_products: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = True

    @classmethod
    def lacks(cls) -> str | None:
        implemented = cls.direction is not Rule.direction or cls.update is not Rule.update
        return None if implemented else "'direction' is missing, or 'update' in its place"

    @property
    def vectors(self) -> int:
        """fp32 vectors of the rank's gradient shard that a step holds at most, beside the gradient itself."""
        return int(self.needs_products)

    @property
    def vectors_in_passes(self) -> int:
        """How many of these a backward pass finds beside its activations. The others are made when there are none."""
        return self.vectors

    @property
    def per_tensor(self) -> bool:
        """Whether ``direction`` is asked once for each tensor, by the products of the gradients' parts in it."""
        return False

    @property
    def gradients(self) -> int:
        """How often a step takes the gradient of each loss, at most; plans estimate its time from this."""
        return 1

    @property
    def retain_passes(self) -> int:
        """Forward passes over the whole retain set in each pass over the forget set; also for estimates."""
        return 0

    @property
    def needs_retain_reference_logps(self) -> bool:
        """Whether ``start`` needs the retain loss of the model before unlearning."""
        return False

    @property
    def extrapolation(self) -> float:
        """The run ends in ``theta_0 + extrapolation * (theta - theta_0)``, ``theta_0`` the weights before it."""
        return 1.0

    def problems(self, settings: RunSettings) -> list[str]:
        """What in a run's ``settings`` the rule does not work with: messages that begin with the key."""
        return []

    def start(self, retain_loss: float | None) -> State:
        """The rule's own state before the first step.

        Args:
            retain_loss: Nats a token over the whole retain set before unlearning, where the run knows it.

        Returns:
            Numbers that are logged and saved with the run's state: fp64, equal on every rank.
        """
        return {}

    def direction(self, products: Products) -> Direction:
        """The direction to descend along, from the gradients' inner products."""
        raise TypeError(f"{type(self).__name__} has neither 'direction' nor 'update'")

    def update(self, step: Step) -> None:
        """Leave in ``step`` the direction to descend along, by ``step.descend``. Collective over all ranks."""
        if self.needs_products and self.per_tensor:
            step.descend_tensors(self._checked)
        else:
            step.descend(self._checked(step.measure() if self.needs_products else Products.unknown()))

    def _checked(self, products: Products) -> Direction:
        found: object = self.direction(products)
        if not isinstance(found, Direction):
            raise TypeError(f"rule {self.name!r}: its 'direction' returned {found!r:.60}; allowed: a Direction")
        return found

    def after(self, step: Step) -> None:
        """What remains to be done once the weights have changed. Collective over all ranks."""
