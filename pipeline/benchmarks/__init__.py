"""Benchmark families by name: a file of this package with a ``FAMILY`` is one."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Annotated, Any, Union

from pydantic import Discriminator

from pipeline.benchmarks.base import Family, Metric, Options

__all__ = ["AnyOptions", "Family", "Metric", "Options", "families", "family"]
NOT_FAMILIES = ("answers", "base", "items", "leaks")


@cache
def families() -> tuple[str, ...]:
    """Names of the families there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_FAMILIES))


def family(name: str) -> Family:
    """The family called ``name``; raises ``ValueError`` that lists the names there are."""
    if name not in families():
        raise ValueError(f"unknown benchmark family {name!r}: there are {', '.join(families())}")
    return importlib.import_module(f"{__name__}.{name}").FAMILY


AnyOptions: Any = Annotated[Union[tuple(family(name).options for name in families())], Discriminator("family")]  # noqa: UP007
