"""The strict base of every specification, and discovery of the classes that a package's files register by name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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


class Named(Strict):
    """A model chosen by its ``name``, a ``Literal`` with one value: adding a file with one subclass registers it."""

    @classmethod
    def key(cls) -> str:
        return get_args(cls.model_fields["name"].annotation)[0]


def discover(package: str, path: list[str], base: type[Named]) -> dict[str, type[Any]]:
    """Import every module of ``package`` and return its ``base`` subclasses by name, sorted.

    Raises ``ValueError`` where two files claim one name.
    """
    found: dict[str, type[Any]] = {}
    for module in pkgutil.iter_modules(path):
        loaded = importlib.import_module(f"{package}.{module.name}")
        for value in vars(loaded).values():
            if value is base or not (isinstance(value, type) and issubclass(value, base)):
                continue
            if value.__module__ == loaded.__name__ and found.setdefault(value.key(), value) is not value:
                raise ValueError(f"{package}: {value.key()!r} is defined by two files")
    return dict(sorted(found.items()))
