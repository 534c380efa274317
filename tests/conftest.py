"""Fixtures for all tests, and which of them run in one process."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what real data decides, also through another fixture, and group what runs in one process."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for item in items:
        if isinstance(item, pytest.Function) and "shared_data" in item.fixturenames:
            item.add_marker("real_data")
        item.add_marker(pytest.mark.xdist_group(_group(item, workers)))


def _group(item: pytest.Item, workers: int) -> str:
    """Its file, whose tests share what is slow to make; files that start several ranks together.

    Ranks wait for each other many times a step: with those of another test on the same cores, each time for these too.
    There is a group of such files for every two workers.
    """
    file = item.nodeid.partition("::")[0]
    if item.get_closest_marker("ranks") is None and not hasattr(getattr(item, "module", None), "run_ranks"):
        return file
    return f"ranks-{zlib.crc32(file.encode()) % max(1, workers // 2)}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with real data, which tests use where it exists: ``$UNLEARN_SHARED_DATA``, or ``../shared/data``."""
    return Path(os.environ.get("UNLEARN_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
