"""PDU: the retain loss is held below a bound by a dual variable that moves with the run."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from megatron_ext.config import RunSettings
from megatron_ext.updates.base import Direction, Rule, State, Step


class PrimalDual(Rule):
    """Minimise ``f`` subject to ``r <= epsilon`` (PDU, constrained entropic unlearning, arXiv 2506.05314).

    Primal step along ``forget_weight * grad f + lambda * grad r`` with the lambda of before the step, then
    ``lambda <- max(0, lambda + dual_rate * (r - epsilon))``. ``dual_update`` says what ``r`` is and when lambda moves:

    - ``step``: the retain loss of the whole global batch, once an optimizer step;
    - ``micro-batch``: the mean over data-parallel ranks of each retain micro-batch's loss, right after it, so that the
      next one is weighted anew: the form of open-unlearning, which moves lambda as often as it accumulates gradients
      (there each rank has a lambda of its own). Costs an all-reduce and a host synchronisation a micro-batch. With
      ``steps_per_epoch: trainer`` the warm-up ends where Trainer's counting ends it, within a step if need be;
    - ``epoch``: the loss of the whole retain set at the end of each pass. Costs a forward pass over it.

    State: ``dual`` is lambda, ``epsilon`` the bound. Holds no vector of its own.
    """

    name: Literal["primal-dual"] = "primal-dual"
    needs_products: ClassVar[bool] = False

    forget_weight: float = Field(1.0, gt=0, description="weight of the forget gradient")
    dual: float = Field(ge=0, description="lambda before the first step")
    dual_rate: float = Field(gt=0, description="how far lambda moves for each unit of r - epsilon")
    epsilon: float | None = Field(None, gt=0, description="bound on the retain loss")
    tolerance: float | None = Field(None, ge=0, description="epsilon = (1 + tolerance) * r before unlearning")
    warmup_epochs: int = Field(0, ge=0, description="lambda stays until so many passes are complete")
    dual_update: Literal["step", "micro-batch", "epoch"] = Field("step", description="when lambda moves")

    @model_validator(mode="after")
    def _one_bound(self) -> PrimalDual:
        if self.epsilon is None and self.tolerance is None:
            raise ValueError("epsilon: is missing; give it or 'tolerance'")
        if self.epsilon is not None and self.tolerance is not None:
            raise ValueError(f"tolerance: {self.tolerance} beside epsilon: {self.epsilon}; allowed is one of the two")
        return self

    @property
    def needs_retain_reference_logps(self) -> bool:
        return self.tolerance is not None

    @property
    def retain_passes(self) -> int:
        return int(self.dual_update == "epoch")

    def problems(self, settings: RunSettings) -> list[str]:
        found = []
        if self.dual_update == "micro-batch" and settings.diagnostics:
            found.append("diagnostics: true; with dual_update 'micro-batch' the retain loss has no own gradient")
        if self.dual_update == "epoch" and settings.topics > 1:
            found.append(f"dual_update: 'epoch' with {settings.topics} topics; allowed is one topic")
        return found

    def start(self, retain_loss: float | None) -> State:
        if self.epsilon is not None:
            return {"dual": self.dual, "epsilon": self.epsilon}
        if self.tolerance is None or retain_loss is None:
            raise ValueError("tolerance: the retain loss before unlearning is not known")
        return {"dual": self.dual, "epsilon": (1 + self.tolerance) * retain_loss}

    def update(self, step: Step) -> None:
        direction = Direction(self.forget_weight, step.state["dual"])
        # Of each micro-batch: open-unlearning's code asks Trainer for the passes whenever one ends.
        passes = step.position.trainer_passes if self.dual_update == "micro-batch" else ()
        passes = passes or (float(step.position.epoch),)
        if self.dual_update == "epoch" or max(passes) < self.warmup_epochs:
            step.descend(direction)
        elif self.dual_update == "step":
            step.descend(direction)
            self._move(step.state, step.losses["retain_loss"])
        else:
            # The last pipeline stage moves lambda as the micro-batches pass; all ranks learn where it ended.
            moving, counted = dict(step.state), iter(passes)

            def move(loss: float) -> float:
                late = next(counted, passes[-1]) >= self.warmup_epochs
                return self._move(moving, loss) if late else moving["dual"]

            step.state["dual"] = step.descend(direction, move)

    def after(self, step: Step) -> None:
        passes = step.position.epoch + step.position.ends_epoch
        if self.dual_update == "epoch" and step.position.ends_epoch and passes >= self.warmup_epochs:
            self._move(step.state, step.whole_retain_loss())

    def _move(self, state: State, retain_loss: float) -> float:
        state["dual"] = max(0.0, state["dual"] + self.dual_rate * (retain_loss - state["epsilon"]))
        return state["dual"]
