"""The best of the measured steps of a run so far, and whether a budget is broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ext.config import selection


class BestStep:
    """Takes one measurement after the other, that before the first step first.

    Attributes:
        before: What was measured before the first step; it is no candidate.
        broke: The first step that broke the budget; ``None`` where there is no budget, or none has.
        within_budget: Whether the best step is; always, where there is no budget.
    """

    def __init__(self, select: str | selection.WithinBudget, first: int = 1) -> None:
        """Nothing is measured yet.

        Args:
            select: How steps are compared.
            first: The first step that may be chosen: before it the weights are those of before the first step.
        """
        self._select, self._first = select, first
        self._budget = None if isinstance(select, str) else select.budget
        self.before: Mapping[str, Any] | None = None
        self.broke: int | None = None
        self._best: Mapping[str, Any] | None = None
        self._worth: tuple[bool, float] = (True, 0.0)

    @property
    def step(self) -> int | None:
        """The best step; ``None`` before one is measured."""
        return None if self._best is None else int(self._best["step"])

    @property
    def within_budget(self) -> bool:
        return self._worth[0]

    @property
    def name(self) -> str:
        """What the best weights are called in records."""
        return "best-on-validation" if self._budget is None else selection.BEST_WITHIN_BUDGET

    def take(self, row: Mapping[str, Any]) -> bool:
        """Note a measurement, a line of the trajectory; whether it is the best so far."""
        if row["step"] == 0:
            self.before = row
        if row["step"] < self._first:
            return False
        worth = self._worth_of(row)
        if not worth[0] and self.broke is None:
            self.broke = int(row["step"])
        better = self._best is None or worth > self._worth
        if better:
            self._best, self._worth = row, worth
        return better

    def reason(self, measured: int, sample: str) -> str:
        """A sentence on the best step.

        Args:
            measured: How many steps a run measures that is not cut short.
            sample: On which rows, in words.
        """
        assert self._best is not None, "the last step is always measured"
        row, budget = self._best, self._budget
        if budget is None:
            return (
                f"validation score {row['score']:.4g} after step {self.step}, the best of {measured} measured {sample}"
            )
        if self.within_budget:
            what = (
                f"forget_probability {row['forget_probability']:.4g} after step {self.step}, the lowest measured with "
            )
            what += budget.text()
        else:
            what = f"{budget.metric} {row[budget.metric]:.4g} after step {self.step}: no step had {budget.text()}"
        ended = "" if self.broke is None else f"; step {self.broke} broke the budget, and the run took no other"
        return f"{what} {sample}{ended}"

    def _worth_of(self, row: Mapping[str, Any]) -> tuple[bool, float]:
        """Whether a measurement is within the budget, and how good it is among those that equal it in that."""
        if self._budget is None:
            return True, row["score"]
        assert self.before is not None, "measured before the first step"
        metric = self._budget.metric
        within = row[metric] >= self._budget.at_least * self.before[metric]
        return within, -row["forget_probability"] if within else row[metric]
