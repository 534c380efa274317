"""docs/methods.md names every method, loss, rule and hyper-parameter, with the default and bounds that the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import annotated_types
import yaml
from pydantic_core import PydanticUndefined

from megatron_ext.losses import LOSSES
from megatron_ext.safe_yaml import Loader
from megatron_ext.updates import RULES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
CLASSES = {**LOSSES, **RULES}
METHODS = sorted(path.stem for path in (ROOT / "workflow_configs" / "methods").glob("*.yaml"))
FIELDS = [(name, key) for name, kind in CLASSES.items() for key in kind.model_fields if key != "name"]
SIGNS = {annotated_types.Gt: ">", annotated_types.Ge: "≥", annotated_types.Lt: "<", annotated_types.Le: "≤"}


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table that begins with this header row."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    table = lines[: next(i for i, line in enumerate([*lines, ""]) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


PARAMETERS = {(row[0].strip("`"), row[1].strip("`")): row[2:] for row in rows("| of | key |")}


def test_everything_is_on_the_page() -> None:
    assert [name for name in (*METHODS, *LOSSES, *RULES) if f"`{name}`" not in PAGE] == []


def test_every_method_file_has_a_row_and_an_entry() -> None:
    headings = "".join(re.findall(r"^##.*", PAGE, re.MULTILINE))
    table = {name: row for row in rows("| file | forget loss |") for name in re.findall(r"`([^`]+)`", row[0])}
    assert set(table) == set(METHODS)
    for method, row in table.items():
        given = yaml.load((ROOT / "workflow_configs" / "methods" / f"{method}.yaml").read_text(), Loader)
        retain = given.get("retain")
        wanted = [given["forget"]["name"], retain["name"] if retain else "", given["rule"]["name"]]
        assert [cell.strip("`") for cell in row[1:4]] == wanted, method
        vectors = max(map(int, re.findall(r"\d+", row[5])))
        assert vectors == RULES[given["rule"]["name"]].model_validate(given["rule"]).vectors, method
        assert f"`{method}`" in headings, method


def test_the_page_has_no_hyper_parameter_that_the_code_lacks() -> None:
    assert set(PARAMETERS) == set(FIELDS)


def test_defaults_and_ranges_are_the_codes() -> None:
    for name, key in FIELDS:
        field = CLASSES[name].model_fields[key]
        default, allowed = PARAMETERS[name, key][:2]
        assert default.strip("`") == _text(field.default), (name, key)
        choices = [part for part in get_args(field.annotation) if isinstance(part, str)]
        if choices:
            assert sorted(allowed.replace("`", "").split(", ")) == sorted(choices), (name, key)
        for bound in [] if choices else field.metadata:
            kind = next(kind for kind in SIGNS if isinstance(bound, kind))
            assert f"{SIGNS[kind]} {getattr(bound, kind.__name__.lower()):g}" in allowed.split(", "), (name, key)


def _text(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{value:g}"
