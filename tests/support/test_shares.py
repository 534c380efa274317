"""What continuous integration runs of the tests that take longest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_shares_are_all_tests_and_none_twice() -> None:
    """Hashes that follow one another leave no test out between them."""
    every = _collected()
    shares = [_collected("--share", commit) for commit in ("ab0c", "ab0d", "ab0e")]
    assert len(every) > 3 and sorted(test for share in shares for test in share) == sorted(every)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def _collected(*options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", "tests/support", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]
