"""Sweeps: a method of an experiment at several values of its settings, as a grid or as a list of points."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from pipeline.config.located_yaml import Document, Key, Mark
from pipeline.config.model_schema import kind

LONGEST = 120  # characters of a point's name, which goes into folder names

Value = bool | int | float | str | None
Grid = Annotated[dict[str, Annotated[list[Value], Field(min_length=1)]], Field(min_length=1)]
Listed = Annotated[list[Annotated[dict[str, Value], Field(min_length=1)]], Field(min_length=1)]
Sweep = Annotated[Annotated[Grid, Tag("mapping")] | Annotated[Listed, Tag("plain")], Discriminator(kind)]


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        name: What a run's variant has for it, such as ``gamma-0.5-beta-0.1``.
        values: Value by dotted key of the method's file.
        overrides: The same as a part of a method's file, each value with the place that gave it.
        places: Where the sweep has each value.
    """

    name: str
    values: Mapping[str, Value]
    overrides: Document
    places: Mapping[str, Key]


def points(document: Document, sweep: Mapping[str, list[Value]] | list[dict[str, Value]]) -> list[Point]:
    """All points of a method's sweep.

    Args:
        document: The sweep's part of the experiment.
        sweep: The same, checked.

    Returns:
        Those of a list in its order; those of a grid with the last key changing first.
    """
    found: list[dict[str, Key]] = []
    if isinstance(sweep, Mapping):
        places = [[(key, i) for i in range(len(values))] for key, values in sweep.items()]
        found = [{str(place[0]): place for place in chosen} for chosen in itertools.product(*places)]
    else:
        found = [{key: (i, key) for key in entry} for i, entry in enumerate(sweep)]
    every = dict.fromkeys(key for places_of in found for key in places_of)
    ends = Counter(key.rpartition(".")[2] for key in every)
    return [_point(document, places_of, ends) for places_of in found]


def problems(found: list[Point]) -> Iterator[tuple[Key, str]]:
    """What is wrong with names and keys of a sweep: where in it, and why."""
    names: set[str] = set()
    for point in found:
        first = next(iter(point.places.values()))
        if point.name in names:
            yield first, f"two points are called {point.name!r}; allowed: values that differ"
        elif len(point.name) > LONGEST:
            yield first, f"the name {point.name!r} has {len(point.name)} characters; allowed: {LONGEST}"
        names.add(point.name)
        for key, place in point.places.items():
            if not all(key.split(".")):
                yield place, f"{key!r} is not allowed: a key of the method's file, its parts separated by dots"
            if inside := [other for other in point.values if other.startswith(f"{key}.")]:
                yield place, f"{key!r} holds {inside[0]!r}, which is swept too"
            value = point.values[key]
            if isinstance(value, float) and not math.isfinite(value):
                yield place, f"{value} is not allowed: a finite number"


def _point(document: Document, places: Mapping[str, Key], ends: Mapping[str, int]) -> Point:
    values: dict[str, Value] = {key: document.at(*place).data for key, place in places.items()}
    # Keys that end alike are told apart by the whole key.
    labels = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in values}
    name = "-".join(f"{labels[key]}-{text(value)}" for key, value in values.items())
    data: dict[str, Any] = {}
    marks: dict[Key, Mark] = {(): document.mark(())}
    for key, value in values.items():
        *parents, last = key.split(".")
        inner = data
        for depth, part in enumerate(parents, 1):
            deeper = inner.get(part)
            inner[part] = inner = deeper if isinstance(deeper, dict) else {}
            marks.setdefault(tuple(parents[:depth]), document.mark(places[key]))
        inner[last] = value
        marks[(*parents, last)] = document.mark(places[key])
    return Point(name, values, Document(data, marks), places)


def text(value: Value) -> str:
    """A value as it stands in names: the same for equal values, and short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].replace("+", ""), f"{value:.12g}")
    return re.sub(r"[^a-z0-9._-]+", "-", value.lower())
