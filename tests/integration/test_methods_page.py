"""docs/methods.md: its tables are the code's, and every method file, loss and rule has an entry with a formula."""

from __future__ import annotations

import re

import pytest

from megatron_ext.losses import LOSSES
from megatron_ext.updates import RULES
from tests.support import methods_page

PAGE = methods_page.PAGE.read_text(encoding="utf-8")
METHODS = sorted(path.stem for path in methods_page.FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", methods_page.TABLES)
def test_a_table_is_the_codes(name: str) -> None:
    """``python -m tests.support.methods_page --write`` makes it so."""
    (shown,) = methods_page.block(name).findall(PAGE)
    assert shown == methods_page.table(methods_page.TABLES[name]())


def test_every_method_file_has_an_entry() -> None:
    headings = "".join(re.findall(r"^##.*", PAGE, re.MULTILINE))
    assert [method for method in METHODS if f"`{method}`" not in headings] == []


def test_every_loss_and_rule_is_spoken_of_beside_the_tables() -> None:
    prose = PAGE
    for name in methods_page.TABLES:
        prose = methods_page.block(name).sub("", prose)
    assert [name for name in (*LOSSES, *RULES) if f"`{name}`" not in prose] == []


def test_tables_say_what_a_reader_looks_for() -> None:
    """The generator itself, on rows that were written down by hand."""
    known = {
        "method files": [
            "| `idk-dpo` | `dpo` | `nll` | `weighted-sum` | 3 F 3 B | 0 | reference, reference of the other answers |"
        ],
        "hyper-parameters": [
            "| `ofmu` | `difference` | 1e-05 | > 0, < 1 | displacement for Hessian products, as a share of \\|theta",
            "| `rmu-retain` | `weight` | 1 | > 0, or one for each topic | alpha; one number, or one for each topic |",
            "| `primal-dual` | `dual` | required | ≥ 0 | lambda before the first step |",
        ],
        "model families": ["| `Qwen3ForCausalLM` |"],
    }
    for name, lines in known.items():
        made = methods_page.table(methods_page.TABLES[name]())
        assert [line for line in lines if line not in made] == []
