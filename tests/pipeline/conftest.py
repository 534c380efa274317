"""Fixtures for the pipeline's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data(shared_data: Path) -> Path:
    """``shared_data`` where it exists; a test that asks for it skips where it does not."""
    if not shared_data.is_dir():
        pytest.skip(f"needs real data, and {shared_data} is not here (UNLEARN_SHARED_DATA names another place)")
    return shared_data
