"""Every update rule once more, from the papers, and a run of a method: in plain torch on one process.

Nothing here comes from ``megatron_ext``; see ``formulas``, whose losses these steps are made of. ``RULES`` holds one
formula for each name that a method's file can use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tests.support.formulas import LOSSES, Adapted, Batch, Model, Rows, Settings


@dataclass
class Point:
    """Where a rule stands: ``forget`` and ``retain`` build each loss at the present weights of ``theta``.

    ``retain_parts``: the batch's retain rows in micro-batches, longest rows first; each part's share of the tokens, and
    its own mean loss. ``retain_before``: the retain loss of the whole set before the run.
    """

    theta: Model
    forget: Callable[[], Tensor]
    retain: Callable[[], Tensor] | None
    retain_parts: list[tuple[float, Callable[[], Tensor]]]
    retain_before: float | None
    step: int
    rate: float
    state: dict[str, float]
    kept: dict[str, Tensor]  # vectors, from step to step
    after: Callable[[], None] = lambda: None  # what the rule does once the weights have moved
    ends: float = 1.0  # the run ends in theta_0 + ends * (theta - theta_0)

    @cached_property
    def f(self) -> tuple[float, Tensor]:
        """The forget loss and its gradient."""
        return self._both(self.forget)

    @cached_property
    def r(self) -> tuple[float, Tensor]:
        assert self.retain is not None
        return self._both(self.retain)

    def _both(self, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
        value = loss()
        return value.item(), self.theta.gradient(value)

    def retain_at(self, displacement: Tensor) -> float:
        assert self.retain is not None
        self.theta.move(displacement)
        value = self.retain().item()
        self.theta.move(-displacement)
        return value

    def record(self, u: Tensor) -> dict[str, float]:
        """What the step log says of a step along ``u``."""
        loss, f = self.f
        found = {"forget_loss": loss, "forget_grad_norm": f.norm(), "update_norm": u.norm()}
        found["forget_alignment"] = f @ u / (f @ f)
        if self.retain is not None:
            loss, r = self.r
            found |= {"retain_loss": loss, "retain_grad_norm": r.norm()}
            if r.norm() > 1e-9:  # else it is rounding: nothing has moved away yet
                found |= {"grad_cosine": f @ r / (f.norm() * r.norm()), "retain_alignment": r @ u / (r @ r)}
        return {key: float(value) for key, value in found.items()}


# Rules: the direction u to be descended along; they may change ``rate``, ``state``, ``after`` and ``ends``.


def weighted_sum(p: Point, c: Settings) -> Tensor:
    u = c["forget_weight"] * p.f[1]
    return u if p.retain is None else u + c["retain_weight"] * p.r[1]


def task_vector(p: Point, c: Settings) -> Tensor:
    """Task arithmetic (arXiv 2212.04089) as in MUSE (arXiv 2407.06460): theta_0 - alpha (theta_tuned - theta_0)."""
    p.ends = -c["alpha"]
    return p.f[1]


def blur(p: Point, c: Settings) -> Tensor:
    """BLUR (arXiv 2506.08164) eq. 14."""
    f, r = p.f[1], p.r[1]
    return c["gamma"] * f + r - (f @ r) / (f @ f) * f


def ngdiff(p: Point, c: Settings) -> Tensor:
    """NGDiff (arXiv 2410.22086); its rate by GeN: a tenth of the way to the vertex of the parabola through the retain
    loss at three rates, which is taken for half to two times the rate."""
    f, r = p.f[1], p.r[1]
    u = r / r.norm() + f / f.norm()  # f is the gradient of a loss to be minimised, the paper's of one to be raised
    automatic = c["automatic_rate"]
    if automatic is not None:
        if p.step % automatic["every"] == 0:
            rate = p.state.get("rate", p.rate)
            ahead, here, behind = (p.retain_at(-x * u) for x in (rate, 0.0, -rate))
            vertex = rate / 2 * (behind - ahead) / (ahead - 2 * here + behind)
            p.state["rate"] = 0.9 * rate + 0.1 * min(2 * rate, max(rate / 2, vertex))
        p.rate = p.state["rate"]
    return u


def pcgrad(p: Point, c: Settings) -> Tensor:
    """PCGrad (arXiv 2001.06782) with the retain task first, as in SAGO's code (arXiv 2604.14808): over all parameters
    at once, or parameter by parameter."""

    def projected(f: Tensor, r: Tensor) -> Tensor:
        dot = f @ r
        return c["gamma"] * (f - dot / (r @ r) * r if dot < 0 else f) + c["alpha"] * r

    f, r = p.f[1], p.r[1]
    if c["scope"] == "global":
        return projected(f, r)
    parts = zip(p.theta.split(f).values(), p.theta.split(r).values(), strict=True)
    return torch.cat([projected(a.flatten(), b.flatten()) for a, b in parts])


def gru(p: Point, c: Settings) -> Tensor:
    """GRU (arXiv 2503.09117): what is against a moving average of the retain gradients is taken out of the forget
    gradient; its code's option bounds the cosine."""
    f, r = p.f[1], p.r[1]
    mean = p.kept["mean"] = c["mu"] * r + (1 - c["mu"]) * p.kept.get("mean", torch.zeros_like(r))
    cosine = f @ mean / (f.norm() * mean.norm())
    if c["lowest_cosine"] is not None:
        cosine = cosine.clamp(min=c["lowest_cosine"])
    return f - cosine.clamp(max=0.0) * f.norm() * mean / mean.norm() + c["retain_weight"] * r


def sam(p: Point, c: Settings) -> Tensor:
    """SAM (arXiv 2502.05374): the forget gradient where the loss has risen most within a ball of radius rho."""
    f = p.f[1]
    u = 0 * f if p.retain is None else c["retain_weight"] * p.r[1]
    worst = c["rho"] * f / f.norm()
    p.theta.move(worst)
    u = u + c["forget_weight"] * p.theta.gradient(p.forget())
    p.theta.move(-worst)
    return u


def sago(p: Point, c: Settings) -> Tensor:
    """SAGO (arXiv 2604.14808): the retain gradient alone wherever the signs differ."""
    f, r = c["gamma"] * p.f[1], c["alpha"] * p.r[1]
    return torch.where(f * r < 0, r, f if c["agreeing"] == "forget" else f + r)


def primal_dual(p: Point, c: Settings) -> Tensor:
    """PDU (arXiv 2506.05314): descent on f + lambda (r - epsilon), after which lambda <- max(0, lambda + eta (r -
    epsilon)): r of the step's batch, of each micro-batch before the next, or of the whole set when a pass ends. Here a
    step is a pass."""
    epsilon = c["epsilon"] if c["epsilon"] is not None else (1 + c["tolerance"]) * p.retain_before

    def raised(dual: float, loss: float, passes: int) -> float:
        """The dual after a loss, where as many passes as the warm-up has are complete."""
        return max(0.0, dual + c["dual_rate"] * (loss - epsilon)) if passes >= c["warmup_epochs"] else dual

    dual = p.state.get("dual", c["dual"])
    if c["dual_update"] == "micro-batch":
        u = c["forget_weight"] * p.f[1]
        for share, part in p.retain_parts:
            loss = part()
            u = u + dual * share * p.theta.gradient(loss)
            dual = raised(dual, loss.item(), p.step)
        p.state["dual"] = dual
        return u
    if c["dual_update"] == "epoch":
        p.after = lambda: p.state.update(dual=raised(dual, p.retain().item(), p.step + 1))  # type: ignore[misc]
    else:
        p.state["dual"] = raised(dual, p.r[0], p.step)
    return c["forget_weight"] * p.f[1] + dual * p.r[1]


def ofmu(p: Point, c: Settings) -> Tensor:
    """OFMU (arXiv 2509.22483): ``inner_steps`` ascents on Phi = L_f - beta cos(grad L_f, grad L_r), where L_f = -f,
    then one descent on L_r + rho |grad Phi|^2 with growing rho. The outer step's 2 rho H grad Phi has the
    Hessian of L_f without the cosine's, which would need third derivatives: a decision of this repository."""
    assert p.retain is not None
    forget, retain = -p.theta.gradient(p.forget(), graph=True), p.theta.gradient(p.retain(), graph=True)
    cosine = forget @ retain / (forget.norm() * retain.norm())
    ascent = forget - c["beta"] * p.theta.gradient(cosine, graph=True)
    outer, place = divmod(p.step, c["inner_steps"] + 1)
    if place < c["inner_steps"]:
        p.rate *= c["inner_rate"]
        return -ascent.detach()
    penalty = c["penalty"] * c["growth"] ** outer
    return retain.detach() + 2 * penalty * p.theta.gradient(forget @ ascent.detach())


RULES: dict[str, Callable[[Point, Settings], Tensor]] = {
    "blur": blur,
    "gru": gru,
    "ngdiff": ngdiff,
    "ofmu": ofmu,
    "pcgrad": pcgrad,
    "primal-dual": primal_dual,
    "sago": sago,
    "sam": sam,
    "task-vector": task_vector,
    "weighted-sum": weighted_sum,
}


@dataclass(frozen=True)
class Method:
    """A method's settings. With ``layer``, losses see that block's output, and only ``trained`` tensors change; with
    ``adapters`` (see ``formulas.Adapted``), these alone."""

    forget: Settings
    retain: Settings | None
    rule: Settings
    layer: int = -1
    trained: Callable[[str], bool] = lambda name: True
    adapters: tuple[Mapping[str, Tensor], float] | None = None


@dataclass(frozen=True)
class Topic:
    """One topic's rows, and its RMU vector, of length 1."""

    name: str
    forget: Rows
    retain: Rows
    alternatives: Rows
    steering: Tensor | None = None


class Run:
    """A method on whole forget and retain sets, the topics in turn. ``micro_batch``: see ``Point.retain_parts``."""

    def __init__(self, method: Method, folder: Path, topics: list[Topic], micro_batch: int) -> None:
        self.method, self.topics, self.micro_batch = method, topics, micro_batch
        self.theta = Adapted(folder, *method.adapters) if method.adapters else Model(folder, method.trained)
        self.origin = Model(folder)
        self.state: dict[str, float] = {}
        self.kept: dict[str, Tensor] = {}
        self.before = None if method.retain is None else self._loss(method.retain, topics[0], topics[0].retain)().item()

    def _loss(self, settings: Settings, topic: Topic, rows: Rows) -> Callable[[], Tensor]:
        batch = Batch(self.theta, self.origin, rows, topic.alternatives, self.method.layer, topic.steering, topic.name)
        return lambda: LOSSES[settings["name"]](batch, settings)

    def step(self, number: int, rate: float) -> tuple[Point, Tensor]:
        """The direction of a step, at the present weights."""
        topic, method = self.topics[number % len(self.topics)], self.method
        forget, retain, parts = self._loss(method.forget, topic, topic.forget), None, []
        if method.retain is not None:
            retain = self._loss(method.retain, topic, topic.retain)
            ordered = sorted(topic.retain, key=lambda row: -len(row[0]))
            cut = [ordered[i : i + self.micro_batch] for i in range(0, len(ordered), self.micro_batch)]
            parts = [(labels(rows) / labels(ordered), self._loss(method.retain, topic, rows)) for rows in cut]
        point = Point(self.theta, forget, retain, parts, self.before, number, rate, self.state, self.kept)
        return point, RULES[method.rule["name"]](point, method.rule)

    def take(self, steps: int, rate: float, epsilon: float | None) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        """Plain descent; with ``epsilon``, AdamW without memory (both betas 0), ``u / (|u| + epsilon)``. Returns
        the log of each step, and how far each tensor is in the end from where it was."""
        start, log, ends = self.theta.weights(), [], 1.0
        for number in range(steps):
            begun = {f"state.{key}": value for key, value in self.state.items()}
            point, u = self.step(number, rate)
            log.append({**point.record(u), "learning_rate": point.rate, **begun})
            self.theta.move(-point.rate * (u if epsilon is None else u / (u.abs() + epsilon)))
            point.after()
            ends = point.ends
        return log, self.theta.moved(start, ends)


def labels(rows: Rows) -> int:
    return sum(len(ids) - prompt for ids, prompt in rows)
