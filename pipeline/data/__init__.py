"""Benchmark text and what becomes of it; data families by name: a file of this package with a ``DATA`` is one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.data.base import DataFamily


def data_family(name: str) -> DataFamily:
    """The data side of the benchmark family called ``name``."""
    return importlib.import_module(f"{__name__}.{name}").DATA
