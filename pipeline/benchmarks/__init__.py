"""Benchmarks, one a folder, found by the folder's name: ``data.py`` has what a model is trained on and asked
(``DATA``), ``evaluate.py`` how its answers become metrics (``FAMILY``)."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Annotated, Any, Union

from pydantic import Discriminator

from pipeline.benchmarks.base import Family, Metric, Options
from pipeline.data.prepared import DataFamily

__all__ = ["AnyOptions", "DataFamily", "Family", "Metric", "Options", "data_family", "families", "family"]


@cache
def families() -> tuple[str, ...]:
    """Names of the families there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg))


def family(name: str) -> Family:
    """The family called ``name``; raises ``ValueError`` that lists the names there are."""
    return importlib.import_module(f"{__name__}.{_known(name)}.evaluate").FAMILY


def data_family(name: str) -> DataFamily:
    """The data side of the benchmark family called ``name``; raises ``ValueError`` that lists the names there are."""
    return importlib.import_module(f"{__name__}.{_known(name)}.data").DATA


def _known(name: str) -> str:
    if name not in families():
        raise ValueError(f"unknown benchmark family {name!r}: there are {', '.join(families())}")
    return name


AnyOptions: Any = Annotated[Union[tuple(family(name).options for name in families())], Discriminator("family")]  # noqa: UP007
