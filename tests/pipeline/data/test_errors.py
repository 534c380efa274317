"""Texts of others as a terminal may have them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.config.located_yaml import ConfigError
from pipeline.data.errors import DataError, printable
from pipeline.hub.download import HubError
from pipeline.launch.in_process import _words
from pipeline.workflow.plan import Plan
from pipeline.workflow.progress import Progress

OBEYED = (
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b2J",
    "\r",
    "\b",
    "\x00",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u2028",
    "\x85",
    "\x0c",
)


@pytest.mark.parametrize("text", OBEYED)
def test_no_text_of_others_is_obeyed_by_a_terminal(text: str, tmp_path: Path) -> None:
    """Only this goes through every way by which texts of data, hubs and logs reach a terminal."""
    log = tmp_path / "step.log"
    log.write_text(f"it said {text}!", newline="")
    stream = io.StringIO()
    progress = Progress(Plan(load("mini"), tmp_path), stream)
    progress.begin(1, f"data: {text}", [])
    progress.fail(1, "prepare", text, [str(log)], [])
    ways = [str(error(f"a{text}b")) for error in (DataError, HubError)]
    ways += [str(ConfigError([f"a{text}b"])), "\n".join(_words(ValueError(f"a{text}b"))), stream.getvalue()]
    for shown in ways:
        assert not set(text) & set(shown) - set("[2J]0;title"), shown


def test_what_people_write_stays() -> None:
    text = "ü é 漢字 العربية \xa0 \u3000 😀 \t tab\nline \\x1b"
    assert printable(text) == text
