"""Learning rates at the ends and in the middle of each schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from megatron_ext.config import Optimizer, Schedule
from megatron_ext.training.schedule import learning_rate


def rates(kind: str, total: int = 10, warmup: int = 0, floor: float = 0.0) -> list[float]:
    spec = Optimizer(learning_rate=2.0, schedule=Schedule(kind=kind, final_fraction=floor))
    return [learning_rate(spec, step, total, warmup) for step in range(total)]


def test_constant_after_a_linear_warmup() -> None:
    assert rates("constant", warmup=4) == pytest.approx([0.5, 1.0, 1.5, *[2.0] * 7])


def test_linear_reaches_its_floor_at_the_last_step() -> None:
    values = rates("linear", warmup=2, floor=0.1)
    assert values[1] == 2.0 and values[-1] == pytest.approx(0.2)
    steps = [a - b for a, b in pairwise(values[1:])]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_cosine() -> None:
    assert rates("cosine") == pytest.approx([1 + math.cos(math.pi * (i + 1) / 10) for i in range(10)])
