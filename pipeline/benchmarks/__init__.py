"""Benchmarks, one in each folder, found by the folder's name.

Of a folder two files have fixed names: ``data.py`` with ``DATA``, what models are trained on and asked, and
``evaluate.py`` with ``FAMILY``, how a model is asked and how its answers become metrics.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Discriminator

from megatron_ext.schema import BrokenFile, Strict, import_file
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
    """The family called ``name``.

    Raises:
        ValueError: There is none; all names are listed.
        BrokenFile: Its file cannot be used; the message says what is wrong in it.
    """
    found = _part(name, "evaluate", "FAMILY", Family)
    _check_literal(name, "evaluate", found.options, "family", name)
    return found


def data_family(name: str) -> DataFamily:
    """The data side of the benchmark family called ``name``; raises as ``family`` does."""
    return _part(name, "data", "DATA", DataFamily)


def _known(name: str) -> str:
    if name not in families():
        raise ValueError(f"unknown benchmark family {name!r}: there are {', '.join(families())}")
    return name


def generators() -> tuple[type[GeneratedSource], ...]:
    """The settings of every benchmark's own generator, once each; raises ``BrokenFile`` where one cannot be told by its
    kind."""
    found: dict[str, type[GeneratedSource]] = {}
    owners = dict.fromkeys(("hub", "folder", "files", "fetched"), "the project")
    for name in families():
        for generator in data_family(name).generators:
            kind = _check_literal(name, "data", generator, "kind")
            if found.get(kind) is generator:  # of a family that is made from another one, or shares its generator
                continue
            if kind in owners:
                known = f"that of {owners[kind]}; another one is needed"
                raise BrokenFile(f"{_file(name, 'data')}: class {generator.__name__}: kind: {kind!r} is {known}")
            found[kind], owners[kind] = generator, _file(name, "data")
    return tuple(found.values())


def _file(name: str, part: str) -> str:
    return f"{__name__.replace('.', '/')}/{name}/{part}.py"


def _part(name: str, part: str, variable: str, protocol: type) -> Any:
    """The object that a file of a family defines; raises ``BrokenFile`` that names what the file lacks."""
    loaded, file = import_file(f"{__name__}.{_known(name)}.{part}"), _file(name, part)
    found = getattr(loaded, variable, None)
    if found is None:
        raise BrokenFile(f"{file}: {variable} is missing, an object with what {protocol.__name__} lists")
    if isinstance(found, type):
        raise BrokenFile(f"{file}: {variable} is a class; an object of it is needed, {found.__name__}()")
    wanted = dict.fromkeys([*protocol.__annotations__, *vars(protocol)])
    lacking = [each for each in wanted if not each.startswith("_") and not hasattr(found, each)]
    if lacking:
        raise BrokenFile(f"{file}: class {type(found).__name__}: {', '.join(map(repr, lacking))} is missing")
    return found


def _check_literal(name: str, part: str, settings: type[Strict], key: str, wanted: str | None = None) -> str:
    """The one text that a field's ``Literal`` allows; raises ``BrokenFile`` where it is another or not one."""
    allowed = get_args(settings.model_fields[key].annotation) if key in settings.model_fields else ()
    one = wanted or (allowed[0] if len(allowed) == 1 else name)
    if allowed != (one,):
        given = f"{allowed[0]!r}" if len(allowed) == 1 else "no Literal"
        said = f'{key}: {given} is not allowed; must be Literal["{one}"]'
        raise BrokenFile(f"{_file(name, part)}: class {settings.__name__}: {said}")
    return one


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
