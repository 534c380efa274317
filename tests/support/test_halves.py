"""What continuous integration runs of the tests that take longest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_halves_are_all_tests_and_none_twice() -> None:
    """An odd and an even hash leave no test out between them."""
    every, even, odd = (_collected(*half) for half in ((), ("--half", "ab0c"), ("--half", "ab0d")))
    assert len(every) > 3 and set(even) | set(odd) == set(every) and len(even) + len(odd) == len(every)
    assert abs(len(even) - len(odd)) <= 1


def _collected(*options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", "tests/support", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]
