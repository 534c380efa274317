"""Examples in words: what counts as said, how rows are sorted, divided into pages and escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest

from pipeline.report import examples
from pipeline.report.examples import Row, Said, Shelf, View
from tests.pipeline.report.conftest import HOSTILE, Bench, row
from tests.pipeline.report.test_page import Page


@pytest.mark.parametrize(
    ("said", "held"),
    [
        ("It is turin!", True),  # "live" is in the question, "in" is common: Turin is enough
        ("In Turin", True),
        ("Ada is living in Turin", True),
        ("Ada lives in Rome.", False),
        ("", False),
    ],
)
def test_an_answer_is_held_where_all_of_its_new_words_are_said(said: str, held: bool) -> None:
    """Only this says when something has leaked; endings and letters of either case do not count."""
    assert examples.holds("Where does Ada live?", "Ada lives in Turin.", said) is held


def test_an_answer_without_new_words_is_held_where_all_of_its_words_are_said() -> None:
    assert examples.holds("Turin or Rome?", "Turin", "turin") and not examples.holds("Turin or Rome?", "Turin", "rome")
    assert examples.holds("日本の首都は", "東京", "東京") and not examples.holds("a", "...", "...")


def test_rows_are_sorted_counted_and_escaped(said: Bench) -> None:
    """Only this reads the pages of examples: what leaks stands first, and a row with a script stays a text."""
    folder = said.write()
    assert sorted(path.name for path in (folder / "examples").iterdir()) == ["01-forget-1.html", "02-retain-1.html"]
    forget = Page((folder / "examples" / "01-forget-1.html").read_text())
    front = Page((folder / "index.html").read_text())
    for page in (forget, front):
        assert not {name for name, _ in page.elements} & {"img", "b"}
        assert HOSTILE in page.text and "<b>NPO</b>" in page.text
        assert [tag for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert [tag["class"] for tag in forget.all("article")] == ["h0 h1 h2 h", "h0 h1 l2 c2 l c", "h0 h1 l2 c2 l c"]
    links = {tag["href"] for tag in front.all("a")}
    assert links == {"examples/01-forget-1.html", "examples/02-retain-1.html"}
    counts = front.text.split("forget to be forgotten")[1].split()
    assert counts[:7] == [
        "3",
        "30",
        "changed",
        "30",
        "changed",
        "12",
        "changed",
    ]  # of three rows: 3 and 0, 3 and 0, 1 and 2


def test_no_text_is_read_where_none_is_wanted(said: Bench) -> None:
    said.spec["examples"] = 0
    (said.root / "evaluation" / "target" / "examples.jsonl").unlink()
    folder = said.write()
    assert (
        not list((folder / "examples").iterdir()) and "What the models say" not in (folder / "index.html").read_text()
    )


def test_what_is_to_be_forgotten_is_in_the_evidence_where_it_is_asked_for(said: Bench) -> None:
    """Only this puts texts into evidence and card, as texts; what is to be kept is never among them."""
    said.spec |= {"evidence_texts": True, "examples": 0}
    rows = [row("forget", 0, "", HOSTILE), row("retain", 0, "")]
    said.say(said.root / "evaluation" / "target", rows)
    (said.root / "runs" / "npo-seed-0" / "checkpoint").mkdir()
    folder = said.write()
    wanted = {"forget": [{"question": rows[0]["question"], "answer": HOSTILE}]}
    assert json.loads((folder / "evidence.json").read_text())["texts"] == wanted
    card = (said.root / "runs" / "npo-seed-0" / "checkpoint" / "README.md").read_text()
    assert "Where does Ada live?" in card and "<script" not in card and "No text of it" not in card


def test_pages_hold_so_many_rows_and_bytes() -> None:
    """Only this divides a set: each row is on one page, and a page is closed at either limit."""
    long = "x" * (examples.PAGE_BYTES // 20)
    rows = [Row(i, "q", "a", (Said("s"),)) for i in range(examples.PAGE_ROWS + 1)]
    shelves = (Shelf("a/b", True, 1, tuple(rows)), Shelf("c", False, 9, tuple(Row(i, long, "a", ()) for i in range(9))))
    view, texts = examples.pages(View(("Target",), (False,), shelves), lambda shelf, some, number: str(len(some)))
    assert {name: int(text) for name, text in texts.items()} == {
        "examples/01-a-b-1.html": examples.PAGE_ROWS,
        "examples/01-a-b-2.html": 1,
        "examples/02-c-1.html": 3,
        "examples/02-c-2.html": 3,
        "examples/02-c-3.html": 3,
    }
    assert [shelf.files for shelf in view.shelves] == [
        ("01-a-b-1.html", "01-a-b-2.html"), ("02-c-1.html", "02-c-2.html", "02-c-3.html")
    ]  # fmt: skip


def test_each_page_has_the_one_script_and_its_hash(
    said: Bench, monkeypatch: pytest.MonkeyPatch, no_figures: None
) -> None:
    """Also the second page of a set. The script is the package's file to the byte, and nothing of the data is in it."""
    monkeypatch.setattr(examples, "PAGE_ROWS", 2)
    folder = said.write()
    script = (Path(examples.__file__).parent / "search.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages = sorted((folder / "examples").glob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.count("<script") == 1 and f"<script>{script}</script>" in text
        assert text.count("script-src") == 1 and f"script-src 'sha256-{digest}'; style-src" in text
        assert '<p id="searching" hidden>' in text
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text and "script-src" not in text and "default-src 'none'" in text
