"""Classes that the files of a package register by name, and what is said of files that cannot be used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.losses import Loss
from megatron_ext.schema import BrokenFile, discover
from megatron_ext.updates import Rule

HEAD = (
    "from typing import ClassVar, Literal\n"
    "from megatron_ext.losses import Loss\n"
    "from megatron_ext.updates import Rule\n"
)  # a file's own text begins on line 4
UNIT = '    unit: ClassVar[Literal["token", "sequence"]] = "token"\n'
CALL = "    def __call__(self, inputs):\n        return inputs.log_probs.sum()\n"
NAME = '    name: Literal["own"] = "own"\n'
WHOLE = f"class Own(Loss):\n{NAME}{UNIT}{CALL}"


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Discovers what files, given by their names and contents, register in a package ``own_package``."""
    folder = tmp_path / "own_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def discovered(base: Any = Loss, **files: str) -> dict[str, Any]:
        for name, text in files.items():
            (folder / f"{name}.py").write_text(HEAD + text)
        importlib.invalidate_caches()
        return discover("own_package", [str(folder)], base)

    yield discovered
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
        del sys.modules[name]


def test_a_class_that_others_are_made_from_needs_no_name(found: Callable[..., dict[str, Any]]) -> None:
    shared = f"class Shared(Loss):\n    margin: float = 1.0\n{UNIT}{CALL}"
    assert set(found(shared=shared, own=f"from own_package.shared import Shared\nclass Own(Shared):\n{NAME}")) == {
        "own"
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"class Own(Loss):\n{UNIT}{CALL}", "own.py: class Own: name: must be a Literal with one text, such as"),
        (
            f"class Own(Loss):\n    name: str = 'own'\n{UNIT}{CALL}",
            "own.py: class Own: name: must be a Literal with one",
        ),
        (
            WHOLE.replace('= "own"', '= "mine"'),
            "own.py: class Own: name: 'mine' is not allowed; its Literal says 'own'",
        ),
        (f"class Own(Loss):\n{NAME}{CALL}", "own.py: class Own: unit: None is not allowed; a ClassVar, 'token' or"),
        (
            WHOLE.replace('= "token"', '= "row"'),
            "own.py: class Own: unit: 'row' is not allowed; a ClassVar, 'token' or",
        ),
        (f"class Own(Loss):\n{NAME}{UNIT}", "own.py: class Own: '__call__' is missing"),
        (f"class Own(Rule):\n{NAME}", "own.py: class Own: is no Loss; in this folder only those are allowed"),
        (WHOLE + WHOLE.replace("class Own", "class Other"), "own.py: class Other: name: 'own' is that of"),
        (
            f"class Own(Loss):\n{NAME}{UNIT}    margin = 6.0\n{CALL}",
            "own.py:4: cannot be imported: PydanticUserError: A",
        ),
        ("class Own(Loss)\n", "own.py:4: cannot be imported: SyntaxError: expected ':'"),
        ("import no_such_package\n", "own.py:4: cannot be imported: ModuleNotFoundError: No module named 'no_such"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(
    found: Callable[..., dict[str, Any]], text: str, said: str
) -> None:
    with pytest.raises(BrokenFile) as error:
        found(own=text)
    assert str(error.value).startswith(f"own_package/{said}")


def test_a_rule_needs_a_direction_or_an_update(found: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(BrokenFile, match=r"own.py: class Own: 'direction' is missing, or 'update' in its place"):
        found(Rule, own=f"class Own(Rule):\n{NAME}")
