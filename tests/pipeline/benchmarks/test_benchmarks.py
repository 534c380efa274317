"""Benchmarks that are found by their folders, and what is said of one whose files cannot be used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from megatron_ext.schema import BrokenFile, Strict
from pipeline import benchmarks
from pipeline.benchmarks.base import Options
from pipeline.benchmarks.tofu import data, evaluate
from pipeline.data.settings import GeneratedSource


class OtherOptions(Options):
    family: Literal["other"] = "other"


class Taken(GeneratedSource):
    kind: Literal["folder"] = "folder"


class Untold(GeneratedSource):
    kind: str = "untold"


class Kindless(Strict):
    stories: int = 3


class News(GeneratedSource):
    kind: Literal["synthetic_news"] = "synthetic_news"


def like(whole: Any, without: str = "", **changes: Any) -> Any:
    """An object with all that ``whole`` has, but for what is left out or changed."""
    names = [name for name in dir(whole) if not name.startswith("_") and name != without]
    return SimpleNamespace(**{name: getattr(whole, name) for name in names} | changes)


def said(of: str) -> str:
    with pytest.raises(BrokenFile) as error:
        if of == "generators":
            benchmarks.generators()
        else:
            getattr(benchmarks, of)("tofu")
    return str(error.value)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (None, "FAMILY is missing, an object with what Family lists"),
        (type(evaluate.FAMILY), "FAMILY is a class; an object of it is needed, "),
        (like(evaluate.FAMILY, "collapse"), "class SimpleNamespace: 'collapse' is missing"),
        (
            like(evaluate.FAMILY, options=OtherOptions),
            "class OtherOptions: family: 'other' is not allowed; must be Literal[\"tofu\"]",
        ),
    ],
)
def test_a_family_that_lacks_something_is_said_when_it_is_read(
    monkeypatch: pytest.MonkeyPatch, family: Any, expected: str
) -> None:
    monkeypatch.setattr(evaluate, "FAMILY", family)
    assert said("family").startswith(f"pipeline/benchmarks/tofu/evaluate.py: {expected}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"without": "topics"}, "class SimpleNamespace: 'topics' is missing"),
        ({"generators": (Taken,)}, "class Taken: kind: 'folder' is that of the project; another one is needed"),
        ({"generators": (Untold,)}, 'class Untold: kind: no Literal is not allowed; must be Literal["tofu"]'),
        ({"generators": (Kindless,)}, 'class Kindless: kind: no Literal is not allowed; must be Literal["tofu"]'),
    ],
)
def test_the_data_side_of_a_family_is_checked_too(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr(data, "DATA", like(data.DATA, **changes))
    assert said("generators") == f"pipeline/benchmarks/tofu/data.py: {expected}"


def test_a_generator_may_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.benchmarks.muse.data import DATA as MUSE

    monkeypatch.setattr(data, "DATA", like(data.DATA, generators=MUSE.generators))
    assert [*benchmarks.generators()].count(*MUSE.generators) == 1


def test_two_generators_of_one_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DATA", like(data.DATA, generators=(News,)))
    kind = "kind: 'synthetic_news' is that of pipeline/benchmarks/muse/data.py; another one is needed"
    assert said("generators").endswith(kind)


def test_a_folder_without_its_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "families", lambda: ("half",))
    expected = "pipeline/benchmarks/half/evaluate.py: cannot be imported: ModuleNotFoundError: No module named"
    with pytest.raises(BrokenFile) as error:
        benchmarks.family("half")
    assert str(error.value).startswith(expected)
