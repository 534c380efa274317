"""Update rules as geometry: what the direction's inner products with the gradients must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from megatron_ext.specs import UnlearnSpec, read
from megatron_ext.updates import Direction, Products
from megatron_ext.updates.base import VANISHED, Objective, StepPosition
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.gru import GRU
from megatron_ext.updates.ngdiff import AutomaticRate, NGDiff
from megatron_ext.updates.ofmu import OFMU
from megatron_ext.updates.pcgrad import PCGrad
from megatron_ext.updates.primal_dual import PrimalDual
from megatron_ext.updates.sago import SAGO
from megatron_ext.updates.weighted_sum import WeightedSum
from tests.support import worlds

METHODS = Path(__file__).parents[3] / "workflow_configs/methods"
RNG = np.random.default_rng(0)
F, R = RNG.normal(size=50), RNG.normal(size=50) * 3 + 0.5

# Gradients of very different lengths, at any angle to each other.
VECTORS = st.builds(
    lambda v, exponent: v * 10.0**exponent, arrays(np.float64, 5, elements=st.floats(-1, 1)), st.integers(-12, 6)
)
POSITIVE = st.floats(1e-3, 1e3)
ANY_TIME = settings(deadline=None)  # a busy machine is no failure


def products(f: np.ndarray, r: np.ndarray) -> Products:
    return Products(ff=f @ f, fr=f @ r, rr=r @ r)


def vector(u: Direction, f: np.ndarray = F, r: np.ndarray = R) -> np.ndarray:
    return u.forget * f + u.retain * r


@pytest.mark.parametrize("gamma", [0.1, 1.0, 2.5])
def test_blur_is_equation_14(gamma: float) -> None:
    u = vector(Blur(gamma=gamma).direction(products(F, R)))
    np.testing.assert_allclose(u, gamma * F + R - (F @ R) / (F @ F) * F)


@ANY_TIME
@given(VECTORS, VECTORS, POSITIVE)
def test_blur_keeps_gamma_of_the_forget_gradient_and_adds_what_is_orthogonal(
    f: np.ndarray, r: np.ndarray, gamma: float
) -> None:
    """Whatever the angle between the gradients."""
    assume(f @ f > 1e-40 * max(1.0, r @ r))
    u = vector(Blur(gamma=gamma).direction(products(f, r)), f, r)
    rounding = 1e-12 * (gamma * (f @ f) + np.linalg.norm(f) * np.linalg.norm(r))
    assert u @ f == pytest.approx(gamma * (f @ f), abs=rounding)
    assert (u - gamma * f) @ f == pytest.approx(0.0, abs=rounding)


def test_blur_projects_agreeing_gradients_too() -> None:
    agreeing = products(F, F + 0.01 * R)
    assert agreeing.fr > 0
    assert Blur(gamma=1.0).direction(agreeing).forget != pytest.approx(1.0)


def test_blur_without_a_forget_gradient_steps_along_the_retain_gradient_and_says_so() -> None:
    u = Blur().direction(products(np.zeros(50), R))
    assert (u.forget, u.retain) == (0.0, 1.0)
    assert u.note and "zero" in u.note


def test_blur_does_not_trust_a_forget_gradient_of_a_few_bits() -> None:
    assert Blur().direction(products(F * 1e-31, R)).forget == 0.0
    assert Blur().direction(products(F * 1e-15, R)).forget != 0.0


def test_a_gradient_that_has_vanished_has_no_direction() -> None:
    """At the very bound: what it might lose to rounding is not looked at."""
    at: Any = VANISHED
    assert Blur().direction(Products(at, 0.0, 1.0)).forget == 0.0
    assert PCGrad(gamma=0.5, alpha=2.0).direction(Products(1.0, -1e-31, at)) == Direction(0.5, 2.0)
    assert (NGDiff().direction(Products(at, 0.0, 4.0)), NGDiff().direction(Products(4.0, 0.0, at))) == (
        Direction(0.0, 0.5, "the forget gradient is zero"),
        Direction(0.5, 0.0, "the retain gradient is zero"),
    )
    for p in (Products(at, 0.0, 1.0), Products(1.0, 0.0, at)):
        f, note = OFMU()._inner(at, "f", "r", p, 1.0)  # type: ignore[arg-type]
        assert f == "f" and note is not None and "zero" in note
    parallel = Products(1.0, 2.0, 4.0)
    assert OFMU()._inner(at, "f", "r", parallel, 1.0) == ("f", None)  # type: ignore[arg-type]


def test_ofmu_knows_how_long_the_vectors_are_that_it_multiplies() -> None:
    """Only this sees it: the length decides how far weights are moved, and hardly the product."""

    class Taken:
        asked: list[Any] = []

        def linear(self, *terms: tuple[float, Any]) -> Any:
            return [sum(factor * vector[0] for factor, vector in terms)]

        def hessian_product(self, objective: Any, v: Any, norm: float, reach: float) -> Any:
            assert norm == pytest.approx(float(v[0].norm()), rel=1e-9) and reach == 0.5
            self.asked.append(objective)
            return v

    taken: Any = Taken()
    OFMU(beta=0.3)._inner(taken, [torch.from_numpy(F)], [torch.from_numpy(R)], products(F, R), 0.5)
    assert taken.asked == [Objective.FORGET, Objective.RETAIN]


@pytest.mark.parametrize("lowest", [None, -0.1])
@pytest.mark.parametrize("against", [1.0, -1.0])
def test_gru_takes_out_what_is_against_its_average_within_its_bound(against: float, lowest: float | None) -> None:
    """Two steps on arrays, of which the second has an average."""

    class Taken:
        kept: dict[str, Any] = {}

        def gradient(self, objective: Objective) -> Any:
            return F if objective is Objective.FORGET else self.r

        def linear(self, *terms: tuple[float, Any]) -> Any:
            return sum(factor * vector for factor, vector in terms)

        def gram(self, *vectors: Any) -> Any:
            return [[a @ b for b in vectors] for a in vectors]

        def descend_along(self, u: Any, f: Any, r: Any, note: str | None) -> None:
            assert f is F and r is self.r
            self.u, self.note = u, note

    taken: Any = Taken()
    taken.kept, mean = {}, 0.0
    for i in range(2):
        taken.r = against * F + (1 + i) * R
        mean = 0.6 * taken.r + 0.4 * mean if i else 0.6 * taken.r
        GRU(mu=0.6, lowest_cosine=lowest, retain_weight=0.3).update(taken)
        cosine = min(0.0, F @ mean / np.linalg.norm(F) / np.linalg.norm(mean))
        assert (cosine < -0.1) == (against < 0), "the bound decides, or nothing is taken out"
        bounded = cosine if lowest is None else max(cosine, lowest)
        wanted = F - bounded * np.linalg.norm(F) * mean / np.linalg.norm(mean) + 0.3 * taken.r
        np.testing.assert_allclose(taken.u, wanted, rtol=1e-12)
        assert taken.note is None


def test_pcgrad_projects_by_tensor_where_it_is_told_to() -> None:
    assert PCGrad(scope="tensor").per_tensor and not PCGrad().per_tensor


@ANY_TIME
@given(VECTORS, VECTORS, POSITIVE, POSITIVE)
def test_pcgrad_takes_from_the_forget_gradient_what_is_against_the_retain_gradient(
    f: np.ndarray, r: np.ndarray, gamma: float, alpha: float
) -> None:
    """And nothing else: gradients that agree are added."""
    assume(r @ r > 1e-40)
    u = vector(PCGrad(gamma=gamma, alpha=alpha).direction(products(f, r)), f, r)
    lost = gamma * f + alpha * r - u
    rounding = 1e-12 * (gamma * np.linalg.norm(f) + alpha * np.linalg.norm(r)) * np.linalg.norm(r)
    assert (u - alpha * r) @ r == pytest.approx(gamma * max(0.0, f @ r), abs=rounding)
    assert np.linalg.norm(lost) * np.linalg.norm(r) == pytest.approx(gamma * max(0.0, -(f @ r)), abs=rounding)


def test_pcgrad_without_a_retain_gradient_steps_along_the_forget_gradient() -> None:
    for nothing in (R * 0, -F * 1e-32):
        u = PCGrad(gamma=0.5).direction(products(F, nothing))
        assert (u.forget, u.retain, u.note) == (0.5, 1.0, None)


@ANY_TIME
@given(VECTORS, VECTORS, st.sampled_from(["forget", "both"]))
def test_no_element_of_sagos_direction_is_against_the_retain_gradient(f: np.ndarray, r: np.ndarray, how: str) -> None:
    import torch

    u = SAGO(gamma=0.5, alpha=2.0, agreeing=how)._gated(torch.from_numpy(f), torch.from_numpy(r)).numpy()  # type: ignore[arg-type]
    assert (np.sign(u) * np.sign(r) >= 0).all()
    against = np.sign(f) * np.sign(r) < 0
    np.testing.assert_allclose(u[against], 2.0 * r[against])
    np.testing.assert_allclose(u[~against], 0.5 * f[~against] + (2.0 * r[~against] if how == "both" else 0.0))


@ANY_TIME
@given(VECTORS, VECTORS, POSITIVE, POSITIVE)
def test_ngdiff_has_the_length_of_two_unit_vectors_and_no_scale(
    f: np.ndarray, r: np.ndarray, scale_f: float, scale_r: float
) -> None:
    assume(min(f @ f, r @ r) > 1e-40)
    p = products(f, r)
    u = vector(NGDiff().direction(p), f, r)
    assert p.cosine is not None
    assert u @ u == pytest.approx(2 + 2 * p.cosine, abs=1e-12)
    assert NGDiff().direction(p).note is None
    scaled = vector(NGDiff().direction(products(scale_f * f, scale_r * r)), scale_f * f, scale_r * r)
    np.testing.assert_allclose(scaled, u, atol=1e-12)


def test_ngdiff_leaves_a_zero_gradient_out_and_says_so() -> None:
    for f, r, left, note in (
        (F * 0, R, R / np.linalg.norm(R), "the forget gradient is zero"),
        (F, R * 0, F / np.linalg.norm(F), "the retain gradient is zero"),
        (F * 0, R * 0, F * 0, "the forget gradient is zero and the retain gradient is zero"),
    ):
        u = NGDiff().direction(products(f, r))
        np.testing.assert_allclose(vector(u, f, r), left)
        assert u.note == note


@ANY_TIME
@given(st.floats(-9, 9), st.floats(0.1, 10), st.floats(0.1, 1))
def test_the_automatic_rate_goes_a_tenth_of_the_way_to_a_parabolas_lowest_point(
    lowest: float, curvature: float, rate: float
) -> None:
    assume(abs(lowest) > 0.01)
    behind, here, ahead = (3 + curvature * (x - lowest) ** 2 for x in (-rate, 0.0, rate))
    found = AutomaticRate(lowest=0.1, highest=5.0).next(rate, ahead, here, behind)
    towards = 0.9 * rate + 0.1 * min(2 * rate, max(rate / 2, lowest))
    assert found == (pytest.approx(min(5.0, max(0.1, towards))) if lowest > 0 else rate)


def test_the_automatic_rate_is_bounded_where_the_curvature_nearly_vanishes() -> None:
    """Only this sees one look send the rate to its upper bound."""
    rate = AutomaticRate(lowest=1e-4, highest=1.0)
    for curvature in (1e-6, 1e-12, 1e-15):
        assert rate.next(0.1, ahead=-1.0, here=-curvature / 2, behind=1.0) == pytest.approx(0.11)
    assert rate.next(0.1, ahead=0.0, here=0.0, behind=1e-12) == pytest.approx(0.1 * (0.9 + 0.1 * 0.5))


def test_blur_rmus_first_step_is_that_of_its_authors_code() -> None:
    """Only this compares the file's epsilon with ``grad f + 800 (grad r - projection)`` under Adam with 1e-6.

    The forget gradient has a root mean square of 1e-6, as Zephyr's is between 1.6e-7 and 2.6e-6.
    """
    file = yaml.safe_load((METHODS / "blur-rmu.yaml").read_text())
    optimizer, draw = file["training"]["optimizer"], torch.Generator().manual_seed(0)
    f, r = (scale * torch.randn(4096, generator=draw, dtype=torch.float64) for scale in (1e-6, 3e-8))

    def first_step(gradient: torch.Tensor, epsilon: float) -> torch.Tensor:
        weights = torch.zeros_like(gradient).requires_grad_()
        weights.grad = gradient
        torch.optim.AdamW([weights], lr=5e-5, eps=epsilon, weight_decay=0.0).step()
        return weights.detach()

    theirs = first_step(f + 800 * (r - (r @ f) / (f @ f) * f), 1e-6)
    u = Blur(gamma=file["rule"]["gamma"]).direction(Products(float(f @ f), float(f @ r), float(r @ r)))
    ours = first_step(u.forget * f + u.retain * r, float(optimizer["epsilon"]))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    assert float(optimizer["learning_rate"]) == 5e-5


def test_the_automatic_rate_stays_without_a_lowest_point_ahead() -> None:
    rate = AutomaticRate(lowest=1e-3, highest=1.0)
    assert rate.next(0.1, ahead=1.0, here=2.0, behind=2.5) == 0.1  # curves down
    assert rate.next(0.1, ahead=3.0, here=2.0, behind=2.0) == 0.1  # uphill
    assert rate.next(0.1, ahead=2.0, here=2.0, behind=2.0) == 0.1  # flat


def test_weighted_sum() -> None:
    u = WeightedSum(forget_weight=0.5, retain_weight=2.0).direction(Products.unknown())
    assert (u.forget, u.retain) == (0.5, 2.0)


def test_derived_numbers_equal_those_of_the_vectors() -> None:
    p, u = products(F, R), Direction(0.7, -1.3)
    v = vector(u)
    assert p.norm_of(u) == pytest.approx(np.linalg.norm(v))
    assert p.cosine == pytest.approx(F @ R / np.linalg.norm(F) / np.linalg.norm(R))
    assert p.along(u) == pytest.approx((F @ v, R @ v))
    assert p.alignments(*p.along(u)) == pytest.approx((F @ v / (F @ F), R @ v / (R @ R)))


def test_pdu_starts_from_the_bound_it_is_given_or_from_the_retain_loss_before() -> None:
    assert PrimalDual(dual=2.0, dual_rate=1.0, epsilon=0.5).start(None) == {"dual": 2.0, "epsilon": 0.5}
    measured = PrimalDual(dual=2.0, dual_rate=1.0, tolerance=0.1)
    assert measured.needs_retain_reference_logps
    assert measured.start(3.0) == {"dual": 2.0, "epsilon": pytest.approx(3.3)}
    with pytest.raises(ValueError, match="tolerance"):
        measured.start(None)


def test_pdu_s_dual_variable_begins_to_move_within_a_step_of_trainer_s() -> None:
    """Only this has a warm-up that ends between two micro-batches, as in open-unlearning's run on forget10."""

    class Taken:
        position = StepPosition(19, 5, False, (64 / 13, 64 / 13, 76 / 13, 76 / 13))
        state = {"dual": 1.0, "epsilon": 1.0}

        def descend(self, direction: Direction, adapt: Callable[[float], float]) -> float:
            assert direction.retain == 1.0
            self.duals = [adapt(3.0) for _ in range(4)]
            return self.duals[-1]

    taken: Any = Taken()
    PrimalDual(**PDU, dual_update="micro-batch", warmup_epochs=5).update(taken)
    assert taken.duals == [1.0, 1.0, 3.0, 5.0] and taken.state["dual"] == 5.0


PDU: dict[str, Any] = {"dual": 1.0, "dual_rate": 1.0, "epsilon": 1.0}
MEASURED = {"name": "primal-dual", "dual": 1.0, "dual_rate": 1.0, "tolerance": 0.1}
MICRO = {"name": "primal-dual", **PDU, "dual_update": "micro-batch"}
EPOCH = {**MICRO, "dual_update": "epoch"}


@pytest.mark.parametrize(
    ("rule", "key", "values"),
    [
        (PrimalDual, "epsilon", {**PDU, "tolerance": 0.1}),
        (PrimalDual, "epsilon", {"dual": 1.0, "dual_rate": 1.0}),
        (NGDiff, "lowest", {"automatic_rate": {"lowest": 1.0}}),
        (OFMU, "highest_penalty", {"penalty": 2.0, "highest_penalty": 1.0}),
    ],
)
def test_hyper_parameters_that_do_not_go_together_are_refused(rule: type, key: str, values: dict[str, Any]) -> None:
    """Bounds of single ones: tests/pipeline/config/test_hyper_parameters.py."""
    with pytest.raises(ValidationError, match=key):
        rule(**values)


AUTOMATIC: dict[str, Any] = {"rule": {"name": "ngdiff", "automatic_rate": {}}, "warmup_epochs": 0.0}
SGD = {"name": "sgd", "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("diagnostics: true", {"rule": MICRO, "diagnostics": True}),
        ("dual_update: 'epoch' with 2 topics", {"rule": EPOCH, "topics": 2}),
        ("'retain_reference_logps' is missing", {"rule": MEASURED}),
        ("optimizer.name: 'adamw'", AUTOMATIC),
        ("optimizer.weight_decay: 0.1", {**AUTOMATIC, "optimizer": {**SGD, "weight_decay": 0.1}}),
        ("optimizer.clip_norm: 1.0", {**AUTOMATIC, "optimizer": {**SGD, "clip_norm": 1.0}}),
        ("optimizer.schedule.kind: 'linear'", {**AUTOMATIC, "optimizer": {**SGD, "schedule": {"kind": "linear"}}}),
        ("optimizer.schedule.warmup_steps: 2", {**AUTOMATIC, "optimizer": {**SGD, "schedule": {"warmup_steps": 2}}}),
        ("warmup_epochs: 1.0", {**AUTOMATIC, "optimizer": SGD, "warmup_epochs": 1.0}),
        ("runtime.precision: 'bf16'", {**AUTOMATIC, "optimizer": SGD, "runtime": {"precision": "bf16"}}),
        ("runtime.precision: 'bf16'", {"rule": {"name": "ofmu"}, "runtime": {"precision": "bf16"}}),
        ("runtime.precision: 'bf16'", {"rule": {"name": "sam"}, "runtime": {"precision": "bf16"}}),
        ("inner_steps: 3 with 2 topics", {"rule": {"name": "ofmu"}, "topics": 2}),
        ("retain_loss: is missing", {"rule": {"name": "ofmu"}, "retain_loss": None}),
        ("forget_loss: 'npo'", {"rule": {"name": "task-vector"}, "retain_loss": None}),
        ("retain_loss: 'nll'", {"rule": {"name": "task-vector"}, "forget_loss": {"name": "nll"}}),
    ],
)
def test_what_a_rule_does_not_work_with_is_refused(message: str, changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        read(spec(tmp_path, changes), UnlearnSpec)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": MICRO},
        {**AUTOMATIC, "optimizer": SGD},
        {"rule": {"name": "ofmu", "inner_steps": 2}, "topics": 2},
        {"rule": {"name": "task-vector"}, "forget_loss": {"name": "nll"}, "retain_loss": None},
    ],
)
def test_what_a_rule_works_with_is_not(changes: dict[str, Any], tmp_path: Path) -> None:
    assert read(spec(tmp_path, changes), UnlearnSpec).rule.name == changes["rule"]["name"]


def spec(folder: Path, changes: dict[str, Any]) -> Path:
    paths = {"forget_data": "f.npz", "retain_data": "r.npz", "reference_logps": "reference.npz"}
    topics = [{"name": f"topic {i}", **paths} for i in range(changes.get("topics", 1))]
    return worlds.unlearn_spec(folder, "spec", **{**changes, "topics": topics})
