"""Options of a command line that are laid on a benchmark's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.benchmarks import Options, family
from pipeline.config.located_yaml import Document, Mark, explain, merge

OPTION = Path("--option")  # stands for a file in messages


def laid_on(options: Document, given: Sequence[str], name: str, problems: list[str]) -> Options | None:
    """The settings of the family ``name``: those of ``options`` with ``KEY=VALUE`` texts laid on them.

    ``None``, with problems added to the list, where they will not do.
    """
    data: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(f"--option {text}: expected KEY=VALUE")
            continue
        try:
            data[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            problems.append(f"--option {text}: the value is not YAML")
    marks = {(): Mark(OPTION, 0, ())} | {(key,): Mark(OPTION, 0, (key,)) for key in data}
    whole = merge(options, Document(data, marks))
    found = [key for key in whole.data if key == "family"]
    if found:
        problems.append(whole.problem(("family",), "unknown key; the benchmark's 'family' says it"))
    whole = Document({"family": name, **whole.data}, {**whole.marks, ("family",): whole.mark(())})
    kind = family(name).options
    try:
        return kind.model_validate(whole.data)
    except ValidationError as error:
        problems += [message.replace(f"{OPTION}:0: ", f"{OPTION} ") for message in explain(error, kind, whole)]
        return None
