"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what real data decides, also through another fixture."""
    for item in items:
        if isinstance(item, pytest.Function) and "shared_data" in item.fixturenames:
            item.add_marker("real_data")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with real data, which tests use where it exists: ``$UNLEARN_SHARED_DATA``, or ``../shared/data``."""
    return Path(os.environ.get("UNLEARN_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
