"""The page and its figures: self-contained, escaped, the same for the same inputs."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}$x^2$"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements of a page with their attributes; complains where an element is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(several) -> str:
    return (several.output / "index.html").read_text()


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_every_file_is_written(several):
    folder = several.output
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"index.html", "table.csv", "table.md", "summary.json"} <= names
    assert {"figures/trade-off-forget-quality.svg", "figures/trade-off-forget-probability.svg"} <= names
    assert {f"figures/compare-{key}.svg" for key in ("forget-loss", "grad-cosine", "forget-alignment")} <= names
    assert {f"figures/blur-npo-{panel}.svg" for panel in ("losses", "norms", "cosine", "alignment")} <= names
    assert "figures/npo-cosine.svg" not in names  # measured by no seed of it
    assert "figures/blur-npo-dual.svg" not in names
    assert not [name for name in names if "/." in name or name.startswith(".")]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["flags"] == [] and summary["models"] == 6
    assert all(summary[f"{part}_seconds"] >= 0 for part in ("startup", "work", "write"))


def test_equal_inputs_give_equal_bytes(several):
    folder = several.output
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "summary.json"}
    several.write()
    assert {path: path.read_bytes() for path in first} == first


def test_figures_of_an_earlier_report_are_removed(bench):
    old = bench.output / "figures" / "npo-losses.svg"
    old.parent.mkdir(parents=True)
    old.write_text("<svg/>")
    bench.write()
    assert not old.exists()


def test_the_page_loads_nothing(text, page):
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "image", "foreignobject"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("src", "srcset", "data") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?://", text)


def test_references_inside_the_page_resolve_and_ids_are_unique(text, page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', text)
    assert used and {name for names in used for name in names if name} <= set(ids)


def test_hostile_texts_stay_texts(bench):
    bench.spec |= {"experiment": HOSTILE, "model": HOSTILE, "config": {HOSTILE: HOSTILE}}
    bench.spec["published"] = [{"method": "../../npo", "metric": "model_utility", "value": 0.5, "source": HOSTILE}]
    bench.add("../../npo", title=HOSTILE, flags=(HOSTILE,), reasons=(HOSTILE,))
    bench.add("_", title="_hidden")
    folder = bench.write()
    page = Page((folder / "index.html").read_text())
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img"}
    assert HOSTILE in page.text and "49" not in re.findall(r"\{\{ 7\*7 \}\}|49", page.text)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert {path.parent for path in folder.rglob("*.svg")} == {folder / "figures"}
    for path in folder.rglob("*.svg"):
        ElementTree.parse(path)
    compare = ElementTree.parse(folder / "figures/compare-forget-loss.svg")
    assert HOSTILE in "".join(compare.getroot().itertext())


def test_the_page_is_marked_up_for_everyone(page):
    assert page.all("html")[0]["lang"] == "en"
    assert "title" in {name for name, _ in page.elements}
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    figures = [svg for svg in page.all("svg")]
    assert len(figures) == len(page.all("figure"))
    assert all(svg["role"] == "img" and svg["aria-label"] and svg.get("viewbox") for svg in figures)
    assert not any("width" in svg for svg in figures)  # the page's style scales them


def test_figures_follow_the_colour_scheme(text):
    assert "prefers-color-scheme: dark" in text
    used = set(
        re.findall(r"var\(--((?:series-\d+)|ink|grid)\)", "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL)))
    )
    assert {"ink", "grid", "series-0", "series-1", "series-2"} <= used
    dark = text[text.index("prefers-color-scheme: dark") :]
    assert all(f"--{name}:" in dark[: dark.index("* {")] for name in used)
    assert not re.search(r"(?:fill|stroke): #", "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL)))


def test_flags_gaps_and_limits_are_said(page):
    assert "most retain questions are answered with no text" in page.text
    assert "Not measured: npo." in page.text  # in the comparison
    assert "Not measured: Cosine of the two gradients; Alignment of the update." in page.text  # in its own panels
    assert "Values below 1e-20 are drawn at it." in page.text
    assert "Hollow: flagged collapsed or unchanged." in page.text


def test_gaps_in_a_curve_are_said(bench):
    steps = bench.steps()
    steps[4]["grad_cosine"] = None
    bench.add("npo", steps=steps)
    page = Page((bench.write() / "index.html").read_text())
    assert "Gaps, where a step has no finite value: npo." in page.text


def test_a_quantity_that_nobody_measured_is_not_drawn(bench):
    bench.add("ga", steps=bench.steps(retain_loss=None))
    folder = bench.write()
    assert not (folder / "figures/compare-retain-loss.svg").exists()
    assert "Not drawn, for no step log has a value: Retain loss." in Page((folder / "index.html").read_text()).text


def test_a_dual_variable_is_drawn_where_there_is_one(bench):
    bench.add("pdu", steps=bench.steps(dual=1.5))
    assert (bench.write() / "figures/pdu-dual.svg").is_file()


def test_times_of_all_steps_are_listed(page):
    # prepare, 6 evaluations and 4 unlearning runs of 4 s each, 1.5 s of it start-up
    assert "Sum 44.0 s, of which start-up 38 %" in page.text
    assert "prepare data" in page.text and "npo-seed-1 unlearn" in page.text


def test_provenance_tells_what_is_shared_and_what_is_not(text, page):
    assert page.text.count("hash of blur-npo") == 1
    assert "learning_rate: 0.001" in page.text
    assert "c0ffee" in page.text


def test_report_without_unlearned_models_or_forget_quality(bench):
    for entry in bench.spec["entries"]:
        path = bench.root / "evaluation" / entry["model_id"] / "evaluation.json"
        found = json.loads(path.read_text())
        found["metrics"] = {"model_utility": 0.5, "forget_probability": 0.25}
        path.write_text(json.dumps(found))
    folder = bench.write()
    assert [path.name for path in (folder / "figures").iterdir()] == ["trade-off-forget-probability.svg"]
    assert "Forget quality" not in (folder / "table.md").read_text()
