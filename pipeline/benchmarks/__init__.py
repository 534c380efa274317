"""Benchmarks, one in each folder, found by the folder's name.

Of a folder two files have fixed names: ``data.py`` with ``DATA``, what models are trained on and asked, and
``evaluate.py`` with ``FAMILY``, how a model is asked and how its answers become metrics.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Discriminator

from pipeline.benchmarks.base import Family, Metric, Options
from pipeline.data.prepared import DataFamily
from pipeline.data.settings import FetchedSource, FilesSource, FolderSource, GeneratedSource, HubSource

__all__ = [
    "AnyLocalSource",
    "AnyOptions",
    "AnySource",
    "DataFamily",
    "Family",
    "Metric",
    "Options",
    "data_family",
    "families",
    "family",
    "generators",
]


@cache
def families() -> tuple[str, ...]:
    """Names of all benchmark families, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg))


def family(name: str) -> Family:
    """The family called ``name``; raises ``ValueError`` that lists all names."""
    return importlib.import_module(f"{__name__}.{_known(name)}.evaluate").FAMILY


def data_family(name: str) -> DataFamily:
    """The data side of the benchmark family called ``name``; raises ``ValueError`` that lists all names."""
    return importlib.import_module(f"{__name__}.{_known(name)}.data").DATA


def _known(name: str) -> str:
    if name not in families():
        raise ValueError(f"unknown benchmark family {name!r}: there are {', '.join(families())}")
    return name


def generators() -> tuple[type[GeneratedSource], ...]:
    """The settings of every benchmark's own generator."""
    return tuple(generator for name in families() for generator in data_family(name).generators)


# What YAML may say, with every benchmark's own part: fields of specifications are annotated with these. A type checker
# sees their common bases, because which benchmarks there are is known when the program runs.
if TYPE_CHECKING:
    AnyOptions = Options
    AnySource = HubSource | FolderSource | FilesSource | GeneratedSource
    AnyLocalSource = FetchedSource | FolderSource | FilesSource | GeneratedSource
else:
    AnyOptions = Annotated[Union[tuple(family(name).options for name in families())], Discriminator("family")]  # noqa: UP007
    AnySource = Annotated[Union[HubSource, FolderSource, FilesSource, *generators()], Discriminator("kind")]
    AnyLocalSource = Annotated[Union[FetchedSource, FolderSource, FilesSource, *generators()], Discriminator("kind")]
