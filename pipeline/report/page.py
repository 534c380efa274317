"""The page: everything of the report in one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.benchmarks.base import Metric
from pipeline.report import examples, meta_evaluation, publications, requests, robustness, sweeps
from pipeline.report.costs import Cost
from pipeline.report.curves import COMPARED, DRAWN, PANELS
from pipeline.report.flat import flat
from pipeline.report.logs import StepTiming
from pipeline.report.read import Group, judges
from pipeline.report.style import COLOURS, GRID, INK, MANY, Figure
from pipeline.report.tables import ARROWS, LEGEND, NONE, by_seed, table
from pipeline.specs import ReportSpec

# What style.COLOURS become on a dark ground.
DARK = ("#58aee6", "#f08a4b", "#3cc79e", "#e08fc0", "#8accf2", "#e3b341", "#b3a1e6", "#c69067")
DETAILED = 200  # models and steps whose checks and provenance are in the page; thousands take seconds to open
DIRECTIONS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "one": "closest to 1 is better",
    "zero": "closest to 0 is better",
    None: "",
}


@dataclass(frozen=True)
class Content:
    """Everything that the page shows.

    Attributes:
        groups: the evaluated models, a group for the seeds of each
        attacked: the same models after each attack
        later_requests: the models after each further request to forget
        saved: the models after each evaluated epoch but those that a run ended in
        metrics: every metric that there may be a value of
        figures: every figure, in the page's order
        costs: of every unlearned model
        timings: times of every step
        changes: tables of what attacks change
        apart: how far each metric tells models that knew from those that did not
        requests: tables of values after each request to forget
        evidence: what ``evidence.json`` holds
        examples: what every model said
    """

    groups: Sequence[Group]
    attacked: Sequence[Group]
    later_requests: Sequence[Group]
    saved: Sequence[Group]
    metrics: Sequence[Metric]
    figures: Sequence[Figure]
    costs: Sequence[Cost]
    timings: Sequence[StepTiming]
    changes: Sequence[robustness.Table]
    apart: meta_evaluation.Table | None
    requests: Sequence[requests.Table]
    evidence: Mapping[str, Any]
    examples: examples.View


def render(spec: ReportSpec, content: Content) -> dict[str, str]:
    """The page and its pages of examples, by file name.

    Every text is escaped, every figure is inlined, and nothing is loaded from elsewhere.
    """
    from markupsafe import Markup

    env = _templates(spec)
    further = env.get_template("examples.html.j2")
    script = (Path(__file__).parent / "search.js").read_text(encoding="utf-8")
    view, pages = examples.pages(
        content.examples,
        lambda shelf, rows, number: further.render(
            title=f"{spec.experiment}: {shelf.name}",
            filters=Markup(examples.styles(content.examples)),
            shelf=shelf,
            rows=rows,
            number=number,
            view=content.examples,
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        ),
    )
    shared, own = provenance([*content.groups, *content.attacked, *content.later_requests, *content.saved])
    text = env.get_template("page.html.j2").render(
        title=f"{_heading(spec)}: unlearning report",
        heading=_heading(spec),
        examples=view,
        detailed=DETAILED,
        first_rows=examples.FIRST,
        groups=content.groups,
        facts=_facts(spec, content.groups),
        changes=content.changes,
        apart=content.apart,
        requests=content.requests,
        requests_legend=requests.legend_of(spec),
        evidence=content.evidence,
        figures=content.figures,
        costs=content.costs,
        unmapped=sweeps.too_many(content.groups),
        **_tables(spec, content),
        **_curves(content),
        **_times(content.timings),
        shared=shared,
        own=own,
        config=yaml.safe_dump(spec.model_dump(mode="json")["config"], sort_keys=False, allow_unicode=True),
        arrows=ARROWS,
        directions=DIRECTIONS,
        legend=LEGEND,
        none=NONE,
    )
    return {"index.html": text, **pages}


def _templates(spec: ReportSpec) -> Any:
    """The templates beside this file, with what all pages have."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    env = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["seconds"] = _seconds
    env.filters["svg"] = lambda figure: Markup(inline(figure))
    env.filters["marks"] = examples.marks
    env.filters["places"] = examples.places
    env.globals.update(
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        light_colours=dict(_variables(COLOURS)),
        dark_colours=dict(_variables(DARK)),
        examples_legend=examples.LEGEND,
        spec=spec,
        filters="",
        script_hash="",
    )
    return env


def _tables(spec: ReportSpec, content: Content) -> dict[str, Any]:
    """The template's tables of metrics, with what stands below them."""
    groups, metrics = content.groups, content.metrics
    headline = table(spec, groups, metrics)
    measured = {key for group in groups for result in group.results for key in result.metrics}
    return {
        "headline": headline,
        "full": table(spec, groups, metrics, headline=False),
        "seeds": by_seed(spec, groups, metrics),
        "sources": headline.sources,
        "unpublished": publications.sentence(spec, groups),
        "judges": judges(groups),
        "metrics": [metric for metric in metrics if metric.key in measured],
    }


def _curves(content: Content) -> dict[str, Any]:
    """The template's figures over steps, and which of them no step log has values for."""
    figures = content.figures
    comparisons = [(title, found) for title in COMPARED.values() if (found := _of(figures, "compare", title))]
    panels = [title for title, _ in PANELS.values()]
    logged = [(f"method {i}", group) for i, group in enumerate(content.groups) if group.runs]
    return {
        "logged": len(logged),
        "by_method": [
            (group, [one for one in figures if one.section == name], _undrawn(figures, name, panels))
            for name, group in logged[:DRAWN]
        ],
        "many": sum(group.kind == "unlearned" for group in content.groups) > MANY,
        "comparisons": comparisons,
        "in_parts": any(len(found) > 1 for _, found in comparisons),
        "validations": [figure for figure in figures if figure.section == "validation"],
        "epochs": [figure for figure in figures if figure.section == "epochs"],
        "undrawn": _undrawn(figures, "compare", COMPARED.values()),
    }


def _times(timings: Sequence[StepTiming]) -> dict[str, Any]:
    """The template's wall times."""
    total = sum(timing.total for timing in timings)
    return {
        "timings": timings,
        "kinds": _kinds(timings),
        "longest": max((timing.total for timing in timings), default=0.0) or 1.0,
        "total": total,
        "startup_share": sum(timing.startup for timing in timings) / total if total else 0.0,
    }


def inline(figure: Figure) -> str:
    """A figure's SVG as an element of the page.

    Its ids begin with the figure's name, its colours are the page's variables, and declarations and metadata are gone.
    """
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    # matplotlib paints two white grounds, the figure's and the axes'; the page's own shows through instead.
    rest = rest.replace("fill: #ffffff", "fill: none").replace("xlink:href", "href")
    rest = re.sub(r'\bid="', f'id="{figure.name}.', rest)
    rest = re.sub(r'href="#', f'href="#{figure.name}.', rest)
    rest = rest.replace("url(#", f"url(#{figure.name}.")
    for colour, name in ((INK, "ink"), (GRID, "grid"), *((colour, name) for name, colour in _variables(COLOURS))):
        rest = re.sub(rf"(?<=: ){colour}", f"var(--{name})", rest)
    title = f"{figure.title} ({figure.part})" if figure.part else figure.title
    label = re.sub(r'[&<>"]', lambda m: f"&#{ord(m[0])};", f"{title}. {figure.caption}".strip())
    return f'<svg {box[0] if box else ""} role="img" aria-label="{label}">{rest.strip()}'


def provenance(groups: Sequence[Group]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What the steps recorded of their origin, in two parts.

    Returns:
        what all records agree on, by dotted key; and by step what is left of each
    """
    records = {
        f"{result.entry.model_id}: {step}": flat(record)
        for group in groups
        for result in group.results
        for step, record in result.provenance.items()
    }
    first, *others = records.values()
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    own = {name: {k: v for k, v in record.items() if k not in shared} for name, record in records.items()}
    return shared, own


def _of(figures: Sequence[Figure], section: str, title: str) -> list[Figure]:
    return [figure for figure in figures if (figure.section, figure.title) == (section, title)]


def _undrawn(figures: Sequence[Figure], section: str, titles: Iterable[str]) -> list[str]:
    return [title for title in titles if not _of(figures, section, title)]


def _kinds(timings: Sequence[StepTiming]) -> list[tuple[str, int, StepTiming]]:
    """(kind, how many, their times summed) of the steps, in the order in which they run."""
    kinds: dict[str, list[StepTiming]] = {}
    for timing in timings:
        kinds.setdefault(timing.step, []).append(timing)
    return [(kind, len(found), _sum(kind, found)) for kind, found in kinds.items()]


def _sum(kind: str, timings: Sequence[StepTiming]) -> StepTiming:
    return StepTiming(
        name=kind,
        step=kind,
        startup=math.fsum(timing.startup for timing in timings),
        work=math.fsum(timing.work for timing in timings),
        write=math.fsum(timing.write for timing in timings),
        flags=tuple(sorted({flag for timing in timings for flag in timing.flags})),
    )


def _heading(spec: ReportSpec) -> str:
    """The experiment's title, or its name where there is no experiment file."""
    title: str = (spec.config.get("experiment") or {}).get("title", spec.experiment)
    return title


def _facts(spec: ReportSpec, groups: Sequence[Group]) -> list[tuple[str, str]]:
    seeds = sorted({r.entry.seed for group in groups for r in group.results if r.entry.seed is not None})
    facts = [("Experiment", spec.experiment), ("Benchmark", spec.benchmark), ("Forget split", spec.split)]
    facts.append(("Model", spec.model))
    facts.append(("Evaluated", f"{sum(len(group.results) for group in groups)} models"))
    return facts + ([("Seeds", ", ".join(map(str, seeds)))] if seeds else [])


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return NONE
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _variables(colours: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"series-{i}", colour) for i, colour in enumerate(colours)]
