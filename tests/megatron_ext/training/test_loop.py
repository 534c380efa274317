"""The loop's own decisions: after which steps a state is written."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_ext.training import loop
from megatron_ext.training.loop import StepOutcome


@pytest.mark.parametrize(
    ("every", "minutes", "expected"),
    [(0, None, []), (4, None, [4, 8]), (0, 1.0, [3, 6, 9]), (4, 1.0, [3, 4, 7, 8]), (0, 100.0, [])],
)
def test_states_by_steps_and_by_time(
    every: int, minutes: float | None, expected: list[int], alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 20 seconds; a state of either kind starts the minutes again, and none is written after the last step."""
    clock, saved = [0.0], list[int]()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter))

    def step(_: int) -> StepOutcome:
        clock[0] += 20.0
        return StepOutcome({}, 1, False)

    trainer: Any = SimpleNamespace(ranks=alone, memory=dict, refuse_broken_weights=lambda: None)
    log = SimpleNamespace(write=lambda _: None)
    resume: Any = SimpleNamespace(restore=lambda: 0, save=saved.append, log=log, kept=str)
    loop.run(trainer, resume, 10, every, step, "steps", checkpoint_minutes=minutes)
    assert saved == expected
