"""Update rules as geometry: what the direction's inner products with the gradients must be."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from megatron_ext.updates import Direction, Products
from megatron_ext.updates.blur import Blur
from megatron_ext.updates.weighted_sum import WeightedSum

RNG = np.random.default_rng(0)
F, R = RNG.normal(size=50), RNG.normal(size=50) * 3 + 0.5


def products(f: np.ndarray, r: np.ndarray) -> Products:
    return Products(ff=f @ f, fr=f @ r, rr=r @ r, forget_loss=1.0, retain_loss=2.0)


def vector(u: Direction) -> np.ndarray:
    return u.forget * F + u.retain * R


@pytest.mark.parametrize("gamma", [0.1, 1.0, 2.5])
def test_blur_is_equation_14(gamma: float) -> None:
    u = vector(Blur(gamma=gamma).direction(products(F, R)))
    np.testing.assert_allclose(u, gamma * F + R - (F @ R) / (F @ F) * F)
    assert u @ F == pytest.approx(gamma * (F @ F))  # whatever the angle between the gradients


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


def test_weighted_sum() -> None:
    u = WeightedSum(forget_weight=0.5, retain_weight=2.0).direction(Products.unknown())
    assert (u.forget, u.retain) == (0.5, 2.0)


def test_derived_numbers_equal_those_of_the_vectors() -> None:
    p, u = products(F, R), Direction(0.7, -1.3)
    v = vector(u)
    assert p.norm_of(u) == pytest.approx(np.linalg.norm(v))
    assert p.cosine == pytest.approx(F @ R / np.linalg.norm(F) / np.linalg.norm(R))
    assert p.forget_alignment(u) == pytest.approx(F @ v / (F @ F))
    assert p.retain_alignment(u) == pytest.approx(R @ v / (R @ R))


@pytest.mark.parametrize(("rule", "key", "value"), [(Blur, "gamma", 0.0), (WeightedSum, "retain_weight", -1.0)])
def test_hyper_parameters_out_of_range_are_refused(rule: type, key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        rule(**{key: value})
