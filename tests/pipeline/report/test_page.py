"""The page and its figures: self-contained, escaped, the same for the same inputs."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from pipeline.benchmarks.tofu.evaluate import FAMILY
from pipeline.benchmarks.tofu.options import TofuOptions
from pipeline.report import curves, read, tables
from pipeline.report import page as page_module
from pipeline.report.style import Figure, Look, look_of
from tests.pipeline.report.conftest import CROWD

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}$x^2$"
VOID = {"meta", "img", "br", "link", "input", "hr"}

METRICS = FAMILY.metrics(TofuOptions())


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


@pytest.mark.slow
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


def test_the_page_says_that_nothing_may_run_or_be_loaded(text, page):
    """Only this reads the page's policy: it stands before all that it is about, and lets styles alone through."""
    policies = [tag for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and text.index("Content-Security-Policy") < text.index("<style")
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0]["content"].split(";"))
    assert rules.pop("style-src") == "'unsafe-inline'"
    assert rules == dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")


def test_references_inside_the_page_resolve_and_ids_are_unique(text, page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', text)
    assert used and {name for names in used for name in names if name} <= set(ids)


def test_the_experiments_title_leads_and_its_name_is_there(bench):
    """Only this has a title; a report without an experiment's file has the name in its place."""
    bench.add("ga")
    bench.spec |= {"experiment": "own-run"}
    assert "<h1>own-run</h1>" in (bench.write() / "index.html").read_text()
    bench.spec |= {"config": {"experiment": {"title": "What must go"}}}
    text = (bench.write() / "index.html").read_text()
    assert "<title>What must go: unlearning report</title>" in text and "<h1>What must go</h1>" in text
    assert "<dt>Experiment</dt><dd>own-run</dd>" in text


def test_hostile_texts_stay_texts(bench):
    bench.spec |= {"experiment": HOSTILE, "model": HOSTILE}
    bench.spec["config"] = {HOSTILE: HOSTILE, "experiment": {"title": HOSTILE}}
    bench.spec["published"] = [{"method": "../../npo", "metric": "model_utility", "value": 0.5, "source": HOSTILE}]
    bench.add("../../npo", title=HOSTILE, flags=(HOSTILE,), reasons=(HOSTILE,))
    bench.add("_", title="_hidden")
    folder = bench.write()
    page = Page((folder / "index.html").read_text())
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img"}
    # What a template would make 49 of; a bare 49 may be anything's, of a folder's name for one.
    assert HOSTILE in page.text and {*re.findall(r"\"'&(.*?)\$x", page.text)} == {"{{ 7*7 }}"}
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
    assert "Hollow: flagged collapsed, unchanged or over-budget." in page.text


@pytest.mark.slow
def test_gaps_in_a_curve_are_said(bench):
    steps = bench.steps()
    steps[4]["grad_cosine"] = None
    bench.add("npo", steps=steps)
    page = Page((bench.write() / "index.html").read_text())
    assert "Gaps, where a step has no finite value: npo." in page.text


@pytest.mark.slow
def test_a_quantity_that_nobody_measured_is_not_drawn(bench):
    bench.add("ga", steps=bench.steps(retain_loss=None))
    folder = bench.write()
    assert not (folder / "figures/compare-retain-loss.svg").exists()
    text = Page((folder / "index.html").read_text()).text
    assert "Not drawn, for no step log has a value: Retain loss; Retain NLL of a fixed batch." in text


@pytest.mark.slow
def test_a_dual_variable_is_drawn_where_there_is_one(bench):
    bench.add("pdu", steps=bench.steps(dual=1.5))
    assert (bench.write() / "figures/pdu-dual.svg").is_file()


def test_times_of_all_steps_are_listed(page):
    # prepare, 6 evaluations and 4 unlearning runs of 4 s each, 1.5 s of it start-up
    assert "Sum 44.0 s, of which start-up 38 %" in page.text
    assert "prepare data" in page.text and "npo-seed-1 unlearn" in page.text
    kinds = re.search(r"Jobs(.*?)Each step", page.text, re.DOTALL)[1].split()
    assert kinds[kinds.index("unlearn") + 1] == "4" and kinds[kinds.index("evaluate") + 1] == "6"


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_times_stand_in_the_order_in_which_steps_run(bench):
    bench.add("npo", steps=bench.steps())
    folder = str(bench.root / "evaluation" / "npo")
    bench.spec["steps"] = dict.fromkeys(["base", "data", "reference/forget", "reference/retain"], folder)
    text = Page((bench.write() / "index.html").read_text()).text
    kinds = [word for word in re.search(r"Jobs(.*?)Each step", text, re.DOTALL)[1].split() if word in read.ORDER]
    assert kinds == ["data", "base", "reference", "unlearn", "evaluate"]


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


@pytest.fixture(scope="module")
def crowded(many) -> Page:
    return Page((many.output / "index.html").read_text())


@pytest.mark.slow
def test_many_methods_are_compared_in_parts_on_one_scale(many, crowded):
    parts = [many.output / f"figures/compare-forget-loss-{i}.svg" for i in (1, 2, 3)]
    assert all(path.is_file() for path in parts)
    assert not (many.output / "figures/compare-forget-loss.svg").exists()
    texts = [[text for text in ElementTree.parse(path).getroot().itertext() if text.strip()] for path in parts]
    titles = [entry["title"] for entry in many.spec["entries"] if entry["kind"] == "unlearned"]
    assert all(sum(title in found for found in texts) == 1 for title in titles)  # each in the legend of one part
    for found in texts:  # the same labels on the same axis
        assert [text for text in found if re.fullmatch(r"[0-9.]+", text.strip())] == [
            text for text in texts[0] if re.fullmatch(r"[0-9.]+", text.strip())
        ]
    assert "Forget loss (2 of 3)" in "".join(texts[1])
    own = {svg["aria-label"].split(".")[0] for svg in crowded.all("svg")}
    assert {f"Forget loss ({i} of 3)" for i in (1, 2, 3)} <= own


@pytest.mark.slow
def test_the_state_of_a_rule_is_drawn_where_it_moves(many):
    names = {path.stem for path in (many.output / "figures").iterdir()}
    assert {"pdu-dual", "ofmu-state-penalty"} <= names
    assert "pdu-state-epsilon" not in names and "pdu-state-dual" not in names
    assert "npo-dual" not in names


@pytest.mark.slow
def test_several_seeds_have_a_table_of_their_own(many, crowded):
    assert "Each seed" in crowded.text
    spec = many.read()
    assert crowded.text.count("seed 1") == (len(spec.entries) - 2) / 2
    apart = tables.by_seed(spec, read.load(spec), METRICS)
    assert len(apart.rows) == len(spec.entries)
    assert not any(cell.best for row in apart.rows for cell in row.cells)


def test_a_page_of_thousands_has_figures_and_details_of_the_first(bench, monkeypatch):
    """And says so. Every model is in the tables and in evidence.json."""
    for name in ("ga", "npo", "rmu"):
        bench.add(name)
    monkeypatch.setattr(curves, "DRAWN", 2)
    monkeypatch.setattr(page_module, "DRAWN", 2)
    monkeypatch.setattr(page_module, "DETAILED", 1)
    monkeypatch.setattr(
        curves, "_panel", lambda name, section, title, *_: Figure(name, section, title, "", "<svg></svg>")
    )
    for other in ("radar", "requests", "trade_offs"):
        monkeypatch.setattr(f"pipeline.report.{other}.draw", lambda *_: [])
    bench.write()
    page = Page((bench.output / "index.html").read_text())
    drawn = {path.stem.partition("-")[0] for path in (bench.output / "figures").iterdir()}
    assert {"ga", "npo"} <= drawn and "rmu" not in drawn
    assert "of the first 2 of 3 methods" in page.text
    assert "The first 1 of 3 models; each run's folder" in page.text, "of costs"
    assert re.search(r"The first 1 of \d+ steps", page.text)
    assert "checks of the first 1 of 3 models" in page.text and "The first 1 of " in page.text
    assert [one["aria-label"] for one in page.all("div") if one.get("aria-label", "").startswith("Checks of")] == [
        "Checks of ga"
    ]
    assert len(json.loads((bench.output / "evidence.json").read_text())["models"]) == 3


def test_one_seed_has_no_table_of_seeds(bench):
    bench.add("npo", seed=0)
    spec = bench.read()
    assert tables.by_seed(spec, read.load(spec), METRICS) is None


def test_looks_are_different(many_groups):
    looks = [look_of(many_groups, group) for group in many_groups]
    assert len({(look.colour, look.marker) for look in looks}) == len(looks) == 2 + len(CROWD)


@pytest.fixture
def many_groups(bench):
    for method in CROWD:
        bench.add(method)
    return read.load(bench.read())


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_notes_of_the_step_log_are_shown_with_the_row(bench):
    steps = bench.steps(10)
    steps[2]["note"] = "collapsed: retained text costs 8.1 nats a token; the direction is zero"
    steps[7]["note"] = "collapsed: retained text costs 9.25 nats a token"
    bench.add("ga", steps=steps)
    text = (bench.write() / "table.md").read_text()
    assert "step log: collapsed (2 of 10 steps), step log: the direction is zero (1 of 10 steps)" in text
    page = Page((bench.output / "index.html").read_text()).text
    assert "collapsed: retained text costs 8.1 nats a token 2 steps, the first 3" in page
    assert "9.25" not in page  # the same but for its figures


def test_lines_are_means_over_seeds_within_their_range(bench):
    for seed, factor in ((0, 1.0), (1, 3.0)):
        steps = bench.steps(4)
        for row in steps:
            row["retain_loss"] *= factor
        steps[1]["retain_loss"] = None if seed else 2.0
        steps[2]["retain_loss"] = None
        bench.add("npo", seed=seed, steps=steps)
    group = read.load(bench.read())[-1]
    line = curves.line_of("npo", Look("#000000", "o"), group, "retain_loss")
    assert line.steps == [1, 2, 3, 4] and line.gaps and line.seeds == 2
    first, last = 1 / 3, 4 / 3
    assert line.mean == pytest.approx([2 * first, 2.0, math.nan, 2 * last], nan_ok=True)
    assert line.low == pytest.approx([first, 2.0, math.nan, last], nan_ok=True)
    assert line.high == pytest.approx([3 * first, 2.0, math.nan, 3 * last], nan_ok=True)


def test_epoch_ends_are_joined_and_are_no_gaps(bench):
    steps = bench.steps(6)
    steps[2]["retain_nll"], steps[5]["retain_nll"] = 0.5, 0.75
    bench.add("npo", steps=steps)
    line = curves.line_of("npo", Look("#000000", "o"), read.load(bench.read())[-1], "retain_nll")
    assert (line.steps, list(line.mean), line.gaps) == ([3, 6], [0.5, 0.75], False)


def test_what_failed_leads_and_stands_in_the_table(bench):
    """A report of what succeeded; the texts are of logs, and whatever a step has met."""
    lines = ["failed: x", "  what happened: a rank failed", f"  first error: ValueError: {HOSTILE}", "  log: a.log"]
    bench.add("npo", seed=0)
    bench.spec["failed"] = [{"model_id": "rmu-seed-0", "title": "RMU", "lines": lines}]
    folder = bench.write()
    found = Page((folder / "index.html").read_text())
    assert found.text.index("What failed") < found.text.index("Results") and HOSTILE in found.text
    assert not [image for image in found.all("img") if image.get("src") == "x"]
    row = next(line for line in tables.as_text(folder).splitlines() if "rmu-seed-0" in line)
    assert "failed: ValueError:" in row
    assert not list(bench.root.glob("**/README.md")), "a model card is of a whole comparison"
