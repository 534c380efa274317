"""Which of the measured steps is the best, with a budget and without one."""

from __future__ import annotations

import pytest

from megatron_ext.config.selection import Budget, WithinBudget
from megatron_ext.training.best_step import BestStep

ROWS = [
    {"step": step, "forget_probability": forget, "retain_probability": retain, "score": score}
    for step, forget, retain, score in [(0, 0.9, 0.8, 0.2), (1, 0.5, 0.8, 0.6), (2, 0.3, 0.76, 0.7), (3, 0.1, 0.6, 0.9)]
]


@pytest.mark.parametrize(
    ("at_least", "step", "within", "broke"),
    [(None, 3, True, None), (0.95, 2, True, 3), (0.96, 1, True, 2), (0.7, 3, True, None), (1.0, 1, True, 2)],
)
def test_the_best_step(at_least: float | None, step: int, within: bool, broke: int | None) -> None:
    """Of those within the budget, its very bound included, the one that forgot most."""
    budget = None if at_least is None else Budget(metric="retain_probability", at_least=at_least)
    best = BestStep("best-on-validation" if budget is None else WithinBudget(budget=budget))
    taken = [best.take(row) for row in ROWS]
    assert not taken[0]
    assert (best.step, best.within_budget, best.broke) == (step, within, broke)


def test_no_step_within_the_budget_is_said() -> None:
    """The one that kept most is taken then, and the reason names the budget."""
    best = BestStep(WithinBudget(budget=Budget(metric="retain_probability", at_least=0.95)))
    for row in (ROWS[0], {**ROWS[3], "step": 1}):
        best.take(row)
    assert (best.step, best.within_budget, best.broke) == (1, False, 1)
    assert "no step had retain_probability at least 0.95 of target's" in best.reason(4, "on 2 rows")


def test_weights_that_did_not_change_are_not_chosen() -> None:
    """After the first step of a warm-up they are those of before: as good in what is retained as none after them."""
    rows = [ROWS[0], {**ROWS[0], "step": 1}, {**ROWS[3], "step": 2, "score": 0.1}]
    for select in ("best-on-validation", WithinBudget(budget=Budget(metric="retain_probability", at_least=0.95))):
        best = BestStep(select, first=2)
        assert [best.take(row) for row in rows] == [False, False, True]
        assert best.step == 2 and best.before == ROWS[0]
