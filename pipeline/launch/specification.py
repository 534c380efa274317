"""A step's specification: read from its file or taken from the command line, and checked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from megatron_ext.schema.safe_yaml import Dumper
from megatron_ext.specs import StepSpec
from pipeline.config.located_yaml import ConfigError, current, read
from pipeline.specs import AnyStepSpec

_UNION: Any = AnyStepSpec  # a type for pydantic, none for a type checker
_ANY: TypeAdapter[StepSpec] = TypeAdapter(_UNION)


def specification(path: Path, text: str | None = None) -> StepSpec:
    """A step's specification, checked.

    Args:
        path: Its YAML file, which is not read where there is ``text``.
        text: The specification as JSON; ``-`` reads it from standard input.

    Returns:
        The specification: of ``text`` where that is given, else of ``path``.

    Raises:
        ConfigError: ``path`` cannot be read, or has keys that were renamed.
        ValueError: The specification is wrong, or no JSON.
    """
    if text is not None:
        return _ANY.validate_python(json.loads(sys.stdin.read() if text == "-" else text))
    problems: list[str] = []
    document = current("specification", read(path), problems)
    if problems:
        raise ConfigError(problems)
    return _ANY.validate_python(document.data)


def as_yaml(spec: StepSpec) -> str:
    """The specification as the text of its file."""
    plain = spec.model_dump(mode="json")
    return str(yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120))
