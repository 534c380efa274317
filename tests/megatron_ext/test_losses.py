"""Each loss against its formula, written out with plain numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_ext.losses import LOSSES
from megatron_ext.losses.ga import GA
from megatron_ext.losses.nll import NLL
from megatron_ext.losses.npo import NPO


def scores(log_probs: list[list[float]], reference: list[float] | None = None, filling: int = 0) -> Any:
    """What a loss sees of sequences with these token log-probabilities, and ``filling`` rows without any."""
    import torch

    sums = [sum(row) for row in log_probs] + [0.0] * filling
    return SimpleNamespace(
        log_probs=torch.tensor([v for row in log_probs for v in row], requires_grad=True),
        sequence_log_probs=torch.tensor(sums, requires_grad=True),
        reference=torch.tensor((reference or [0.0] * len(log_probs)) + [0.0] * filling),
        real=torch.tensor([True] * len(log_probs) + [False] * filling),
    )


ROWS = [[-0.5, -1.5], [-0.25, -2.0, -3.0]]


def test_nll_is_the_negative_sum_over_tokens() -> None:
    assert NLL()(scores(ROWS)).item() == pytest.approx(7.25)


def test_ga_is_the_negative_of_nll() -> None:
    assert GA()(scores(ROWS)).item() == pytest.approx(-7.25)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_formula(beta: float) -> None:
    reference = [-1.0, -6.0]
    expected = sum(
        2 / beta * math.log(1 + math.exp(beta * (sum(row) - ref))) for row, ref in zip(ROWS, reference, strict=True)
    )
    assert NPO(beta=beta)(scores(ROWS, reference)).item() == pytest.approx(expected, rel=1e-6)


def test_npo_ignores_rows_that_only_fill_a_batch() -> None:
    assert NPO()(scores(ROWS, [-1.0, -6.0], filling=3)).item() == pytest.approx(
        NPO()(scores(ROWS, [-1.0, -6.0])).item()
    )


def test_npo_gradient_is_the_weighted_gradient_of_ascent() -> None:
    # d/d log p of (2/b) log(1 + e^(b rho)) is 2 sigmoid(b rho)
    s = scores(ROWS, [-1.0, -6.0])
    NPO(beta=0.5)(s).backward()
    expected = [2 / (1 + math.exp(-0.5 * (sum(row) - ref))) for row, ref in zip(ROWS, [-1.0, -6.0], strict=True)]
    assert s.sequence_log_probs.grad.tolist() == pytest.approx(expected)


def test_every_loss_is_registered_under_its_name() -> None:
    assert {"ga", "nll", "npo"} <= set(LOSSES)
    assert all(cls().name == name for name, cls in LOSSES.items())
