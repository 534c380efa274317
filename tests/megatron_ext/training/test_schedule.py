"""Learning rates of each schedule, beside transformers' own, for every step."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_scheduler

from megatron_ext.config import Optimizer, Schedule
from megatron_ext.training.schedule import learning_rate


def rates(kind: str, total: int = 10, warmup: int = 0, floor: float = 0.0) -> list[float]:
    spec = Optimizer(learning_rate=2.0, schedule=Schedule(kind=kind, final_fraction=floor))
    return [learning_rate(spec, step, total, warmup) for step in range(total)]


@pytest.mark.parametrize(("total", "warmup"), [(10, 0), (10, 1), (60, 6), (1, 0), (5, 5)])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_every_step_has_the_rate_of_transformers(kind: str, total: int, warmup: int) -> None:
    """Only this compares with the schedules that the published numbers were made with."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    theirs = []
    for _ in range(total):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(kind, total, warmup) == pytest.approx(theirs, rel=1e-12, abs=1e-15)


def test_decay_goes_towards_its_floor() -> None:
    """Only this sees ``final_fraction``, which transformers' linear schedule lacks."""
    assert rates("linear", warmup=2, floor=0.1)[2:] == pytest.approx([2 * (1 - 0.9 * i / 8) for i in range(8)])
    assert rates("cosine", floor=0.5)[5] == pytest.approx(2 * (0.5 + 0.25 * (1 + math.cos(math.pi / 2))))
