import os
import time

import pytest

from tests.support.distributed import run_ranks


def _place(factor: int) -> tuple[int, int]:
    return int(os.environ["RANK"]) * factor, int(os.environ["WORLD_SIZE"])


def _one_fails() -> None:
    if os.environ["RANK"] == "1":
        raise ArithmeticError("rank one cannot count")
    time.sleep(60)


def _hang() -> None:
    time.sleep(60)


def test_results_come_back_by_rank():
    assert run_ranks(_place, 3, 10) == [(0, 3), (10, 3), (20, 3)]


def test_a_failing_rank_is_reported_and_the_others_are_ended(monkeypatch):
    monkeypatch.setattr("tests.support.distributed.GRACE_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed:\n(.*\n)*.*rank one cannot count"):
        run_ranks(_one_fails, 2)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_hang_ends_at_the_time_out():
    with pytest.raises(TimeoutError, match="not all of 1 ranks had ended"):
        run_ranks(_hang, 1, timeout=1)
