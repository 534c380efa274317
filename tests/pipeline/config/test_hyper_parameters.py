"""Every hyper-parameter of every loss and rule: a value out of its range is a mistake that names its key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from megatron_ext.config import TrainableLayers
from megatron_ext.losses import LOSSES
from megatron_ext.schema import Strict
from megatron_ext.schema.safe_yaml import Loader
from megatron_ext.specs import Unlearning
from megatron_ext.updates import RULES
from pipeline.config.load import CONFIGS, load
from pipeline.config.located_yaml import ConfigError

Key = tuple[str | int, ...]
NONSENSE = "nonsense"
BOUNDS = {
    "minimum": lambda bound: bound - 1,
    "exclusiveMinimum": lambda bound: bound,
    "maximum": lambda bound: bound + 1,
    "exclusiveMaximum": lambda bound: bound,
}


def wrong_values(schema: dict[str, Any], kinds: dict[str, Any], key: Key) -> Iterator[tuple[Key, Any]]:
    """Values outside every bound that a JSON schema states; a number without a bound has none but infinity."""
    schema = kinds[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for part in schema.get("anyOf", []):
        yield from wrong_values(part, kinds, key)
    for name, part in schema.get("properties", {}).items():
        if "const" not in part:
            yield from wrong_values(part, kinds, (*key, name))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from wrong_values(schema["additionalProperties"], kinds, (*key, "forget"))
    for i, part in enumerate(schema.get("prefixItems", [schema["items"]] if "items" in schema else [])):
        yield from wrong_values(part, kinds, (*key, i))
    if schema.get("type") in ("number", "integer"):
        for bound, outside in BOUNDS.items():
            if bound in schema:
                yield key, outside(schema[bound])
        yield key, math.inf
    elif "enum" in schema or schema.get("type") == "boolean":
        yield key, NONSENSE


KINDS: list[tuple[str, str, str | None, type[Strict]]] = [
    *(("npo", "forget", name, kind) for name, kind in LOSSES.items()),
    *(("npo", "rule", name, kind) for name, kind in RULES.items()),
    ("rmu", "trainable_layers", None, TrainableLayers),
    ("npo", "training", None, Unlearning),
]


def nested(key: Key, value: Any) -> Any:
    for part in reversed(key):
        value = [value] * (part + 1) if isinstance(part, int) else {part: value}
    return value


def cases() -> Iterator[Any]:
    """Of each section one value of each sort: (method to change, overrides, key that the message must name)."""
    seen = set()
    for method, section, name, kind in KINDS:
        schema = kind.model_json_schema()
        for key, value in wrong_values(schema, schema.get("$defs", {}), ()):
            sort = section, type(value), len(key), isinstance(key[-1], int)
            if sort in seen:
                continue
            seen.add(sort)
            named = {"name": name} if name else {}
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
            overrides = {section: {**named, **nested(key, value)}}
            yield pytest.param(method, overrides, f"{section}{where}", id=f"{name or section}{where}={value}")


@pytest.mark.parametrize(("method", "overrides", "key"), cases())
def test_a_value_out_of_range_names_its_key(method: str, overrides: dict[str, Any], key: str, tmp_path: Path) -> None:
    content = yaml.load((CONFIGS / "experiments" / "mini.yaml").read_text(), Loader)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content | {"methods": [{"method": method, "overrides": overrides}]}))
    with pytest.raises(ConfigError) as error:
        load(path)
    wanted = f"methods[0].overrides.{key}: "
    assert any(
        wanted in problem and ("not allowed" in problem or "unknown value" in problem)
        for problem in error.value.problems
    ), error.value.problems


def test_every_bound_is_kept_and_every_number_has_one() -> None:
    for _, _, name, kind in KINDS:
        schema = kind.model_json_schema()
        found: dict[Key, list[Any]] = {}
        for key, value in wrong_values(schema, schema.get("$defs", {}), ()):
            found.setdefault(key, []).append(value)
            with pytest.raises(ValidationError) as error:
                kind.model_validate(nested(key, value))
            assert any(is_part(key, problem["loc"]) for problem in error.value.errors()), (name, key, value)
        assert [key for key, values in found.items() if values == [math.inf]] == [], name


def is_part(key: Key, place: Key) -> bool:
    """Whether ``key`` is in pydantic's ``place``, which also names the members of unions."""
    rest = iter(place)
    return all(part in rest for part in key)
