"""The strict base of every specification, and discovery of the classes that a package's files register by name."""

from __future__ import annotations

import importlib
import pkgutil
from traceback import extract_tb
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticUndefined


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, silent type conversions, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r:.60} is not allowed: must be one line of characters that can be printed")
    return text


# A text for people, such as a title: it is printed, so it holds nothing that a terminal would obey.
Line = Annotated[str, AfterValidator(_one_line)]

# Of random numbers; numpy's generator, which is among those that are seeded, takes 32 bits.
SEEDS = 2**32
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


class BrokenFile(Exception):
    """A file of a package whose classes are found by name cannot be used; the message begins with the file."""


class Named(Strict):
    """A model chosen by its ``name``, a ``Literal`` with one value: adding a file with one subclass registers it."""

    @classmethod
    def key(cls) -> str:
        return get_args(cls.model_fields["name"].annotation)[0]

    @classmethod
    def lacks(cls) -> str | None:
        """What a class that is registered needs and does not have, or None."""
        return None


def discover(package: str, path: list[str], base: type[Named]) -> dict[str, type[Any]]:
    """Import every module of ``package`` and return its ``base`` subclasses by name, sorted.

    A class without a name of its own is left out where others are made from it.

    Raises:
        BrokenFile: A file cannot be imported, or a class in it could not be used under its name.
    """
    classes: dict[type[Named], str] = {}
    for module in pkgutil.iter_modules(path):
        loaded = import_file(f"{package}.{module.name}")
        own = [value for value in vars(loaded).values() if isinstance(value, type) and issubclass(value, Named)]
        file = f"{package.replace('.', '/')}/{module.name}.py"
        classes |= {value: file for value in own if value.__module__ == loaded.__name__ and value is not base}
    found: dict[str, type[Any]] = {}
    for value, file in classes.items():
        if not _is_named(value) and value.__subclasses__():
            continue
        wrong = _problem(value, base)
        if wrong is None and found.setdefault(value.key(), value) is not value:
            wrong = f"name: {value.key()!r} is that of {classes[found[value.key()]]} too; another name is needed"
        if wrong is not None:
            raise BrokenFile(f"{file}: class {value.__name__}: {wrong}")
    return dict(sorted(found.items()))


def import_file(name: str) -> Any:
    """A module of a folder in which everybody can put files; raises ``BrokenFile`` with file and line."""
    file = f"{name.replace('.', '/')}.py"
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, SyntaxError):
            lines = [error.lineno]
        else:
            lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename.endswith(f"/{file}")]
        where = f"{file}:{lines[-1]}" if lines else file
        message = str(error).partition("\n")[0]
        raise BrokenFile(f"{where}: cannot be imported: {type(error).__name__}: {message}") from error


def _is_named(value: type[Named]) -> bool:
    names = get_args(value.model_fields["name"].annotation) if "name" in value.model_fields else ()
    return len(names) == 1 and isinstance(names[0], str)


def _problem(value: type[Named], base: type[Named]) -> str | None:
    """Why a class of a package of ``base`` subclasses cannot be registered."""
    if not issubclass(value, base):
        return f"is no {base.__name__}; in this folder only those are allowed"
    if not _is_named(value):
        return 'name: must be a Literal with one text, such as name: Literal["hinge"] = "hinge"'
    default = value.model_fields["name"].default
    if default not in (PydanticUndefined, value.key()):
        return f"name: {default!r:.60} is not allowed; its Literal says {value.key()!r}"
    return value.lacks()
