"""docs/scaling.md: its tables are what ``unlearn plan`` prints."""

from __future__ import annotations

import pytest

from tests.support import scaling_page


@pytest.mark.parametrize("command", scaling_page.commands())
def test_a_table_is_the_commands(command: str) -> None:
    """``python -m tests.support.scaling_page --write`` makes it so."""
    assert scaling_page.commands()[command] == scaling_page.printed(command)


def test_the_page_has_tables() -> None:
    assert len(scaling_page.commands()) >= 4
