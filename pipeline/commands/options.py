"""Options of the command line: settings of a benchmark family, and layouts of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from megatron_ext.config import Layout
from pipeline.benchmarks import Options, family
from pipeline.config.command_line import value_of
from pipeline.config.located_yaml import ConfigError, Document, Key, Mark, explain, hint, merge

OPTION = Path("--option")  # stands for a file in messages
SIDES = {"tp": "tensor", "pp": "pipeline", "dp": "data", "tensor": "tensor", "pipeline": "pipeline", "data": "data"}


def family_options(
    options: Document,
    given: Sequence[str],
    name: str,
    problems: list[str],
    implied: Mapping[str, Any] = MappingProxyType({}),
) -> Options | None:
    """The settings of a benchmark family, those of the command line in place of a file's.

    Args:
        options: What the file says.
        given: ``KEY=VALUE`` texts of the command line, with values in YAML.
        name: The family.
        problems: Gets a message for everything that is wrong.
        implied: Settings that follow from the benchmark's data, where neither file nor command line gives them.

    Returns:
        The settings; ``None`` where they are wrong.
    """
    whole = merge(options, _document(given, problems))
    if "family" in whole.data:
        problems.append(whole.problem(("family",), "unknown key; the benchmark's 'family' says it"))
    marks: dict[Key, Mark] = {(key,): whole.mark(()) for key in ("family", *implied) if key not in whole.data}
    whole = Document({"family": name, **implied, **whole.data}, {**whole.marks, **marks})
    kind = family(name).options
    try:
        return kind.model_validate(whole.data)
    except ValidationError as error:
        problems += explain(error, kind, whole)
        return None


def _document(given: Sequence[str], problems: list[str]) -> Document:
    data: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(f"--option {text}: expected KEY=VALUE")
            continue
        try:
            data[key.strip()] = value_of(value)
        except yaml.YAMLError:
            problems.append(f"--option {text}: the value is not YAML")
        except ConfigError as error:
            problems += [f"--option {key.strip()}: {message}" for message in error.problems]
    marks: dict[Key, Mark] = {(): Mark(OPTION, 0, ())}
    return Document(data, marks | {(key,): Mark(OPTION, 0, (key,)) for key in data})


def parallel_layout(text: str, problems: list[str]) -> Layout | None:
    """The layout that ``--layout`` asks for.

    Args:
        text: Such as ``tp=2,pp=2``; sides that are left out have one rank.
        problems: Gets a message for everything that is wrong.

    Returns:
        The layout; ``None`` where the text is wrong.
    """
    sizes: dict[str, int] = {}
    wrong: list[str] = []
    for part in filter(None, text.split(",")):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if name not in SIDES:
            wrong.append(f"unknown side {name!r}{hint(name, list(SIDES))}")
        elif not equals or not number.isdecimal() or int(number) < 1:
            wrong.append(f"{part!r}: expected {name}=N with N of at least 1")
        elif SIDES[name] in sizes:
            wrong.append(f"{SIDES[name]} is given twice")
        else:
            sizes[SIDES[name]] = int(number)
    problems += [f"--layout: {message}" for message in wrong]
    if wrong:
        return None
    return Layout(tensor=sizes.get("tensor", 1), pipeline=sizes.get("pipeline", 1), data=sizes.get("data", 1))
