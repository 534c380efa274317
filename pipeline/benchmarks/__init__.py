"""Benchmark families by name: a file of this package with a ``FAMILY`` is one."""

from __future__ import annotations

import importlib
import pkgutil

from pipeline.benchmarks.base import Family, Item, Metric

__all__ = ["Family", "Item", "Metric", "families", "family"]


def families() -> tuple[str, ...]:
    """Names of the families there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


def family(name: str) -> Family:
    """The family called ``name``; raises ``ValueError`` that lists the names there are."""
    if name not in families():
        raise ValueError(f"unknown benchmark family {name!r}: there are {', '.join(families())}")
    return importlib.import_module(f"{__name__}.{name}").FAMILY
