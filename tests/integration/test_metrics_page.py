"""docs/metrics.md defines every metric that a benchmark family can report, and none that no family has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from pipeline.benchmarks import AnyOptions, families, family
from pipeline.benchmarks.attacks import Attack

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
ATTACKS = get_args(Attack)
EVERYTHING: dict[str, dict[str, Any]] = {
    "tofu": {"memorisation": True, "membership": list(ATTACKS), "privleak": True, "leak": {}},
    "muse": {"memorisation": True, "membership": list(ATTACKS), "privleak": True, "shorten_few_shot": True}
    | {"leak": {"k": [2]}},
    "custom": {
        "memorisation": True,
        "membership": list(ATTACKS),
        "privleak": True,
        "leak": {"k": [3, 4], "samples": 4},
        "asked": {
            name: {"form": form, "part": part, "rows": 1, "perturbed": form == "questions"}
            for name, form, part in (
                ("forget", "questions", "forget"),
                ("forget_texts", "texts", "forget"),
                ("retain", "questions", "retain"),
                ("retain_texts", "texts", "retain"),
                ("holdout", "questions", "holdout"),
                ("reworded", "questions", "forget"),
                ("cloze", "cloze", "forget"),
            )
        },
    },
    "lm_eval": {"tasks": ["mmlu"], "metrics": ["acc", "acc_norm", "acc_bytes", "exact_match,strict-match"]},
}
# What stands in braces or pointed brackets in a key, beside the names themselves separated by commas.
ANY = {"attack": "|".join(ATTACKS), "k": r"\d+", **dict.fromkeys(("task", "group", "metric", "filter"), r"[\w-]+")}


def keys(name: str) -> list[str]:
    options = TypeAdapter(AnyOptions).validate_python({"family": name, **EVERYTHING[name]})
    return [metric.key for metric in family(name).metrics(options)]


def patterns(name: str) -> list[str]:
    """Regular expressions of the keys that the family's section defines: the first column of its table of keys."""
    (heading,) = re.findall(rf"^## .*family `{name}`$", PAGE, re.MULTILINE)
    section = PAGE[PAGE.index(heading) + len(heading) :].partition("\n## ")[0]
    table = section[section.index("| key | definition |") :].splitlines()[2:]
    rows = table[: next(i for i, line in enumerate([*table, ""]) if not line.startswith("|"))]
    return [_pattern(name, key) for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])]


def _pattern(name: str, key: str) -> str:
    sets = "|".join(family(name).sets(TypeAdapter(AnyOptions).validate_python({"family": name, **EVERYTHING[name]})))

    def choice(found: re.Match[str]) -> str:
        inside = found[1] or found[2]
        known = {**ANY, "set": sets, "other set": sets}
        return f"(?:{known.get(inside, inside.replace(',', '|'))})"

    return re.sub(r"\{([^}]*)\}|<([^>]*)>", choice, key).replace("*", r"\w+")


def test_every_family_has_a_section() -> None:
    assert set(EVERYTHING) == set(families())
    for name in families():
        assert patterns(name)


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_metric_is_on_the_page(name: str) -> None:
    defined = re.compile("|".join(patterns(name)))
    assert [key for key in keys(name) if not defined.fullmatch(key)] == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_page_has_no_metric_that_the_code_lacks(name: str) -> None:
    for pattern in patterns(name):
        assert any(re.fullmatch(pattern, key) for key in keys(name)), pattern


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_metric_says_what_it_is_and_whose(name: str) -> None:
    options = TypeAdapter(AnyOptions).validate_python({"family": name, **EVERYTHING[name]})
    for metric in family(name).metrics(options):
        assert metric.title and metric.definition and metric.source, metric.key
