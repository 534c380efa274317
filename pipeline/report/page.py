"""The page: everything of the report in one HTML file that needs no network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.benchmarks.base import Metric
from pipeline.report.curves import COMPARED, PANELS
from pipeline.report.read import Group, StepTiming, judges
from pipeline.report.requests import Table as Requests
from pipeline.report.requests import legend_of
from pipeline.report.robustness import Table as Changes
from pipeline.report.style import COLOURS, GRID, INK, MANY, Figure
from pipeline.report.tables import ARROWS, LEGEND, NONE, by_seed, table
from pipeline.specs import ReportSpec

# The colours of figures.COLOURS, INK and GRID on a dark ground.
DARK = ("#58aee6", "#f08a4b", "#3cc79e", "#e08fc0", "#8accf2", "#e3b341", "#b3a1e6", "#c69067")
DIRECTIONS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "one": "closest to 1 is better",
    "zero": "closest to 0 is better",
    None: "",
}


def render(
    spec: ReportSpec,
    groups: Sequence[Group],
    metrics: Sequence[Metric],
    figures: Sequence[Figure],
    stages: Sequence[StepTiming],
    attacked: Sequence[Group] = (),
    changes: Sequence[Changes] = (),
    requests: Sequence[Requests] = (),
) -> str:
    """The page's HTML: every text is escaped, every figure is inlined, and nothing is loaded from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"seconds": _seconds, "svg": lambda figure: Markup(inline(figure))}
    shared, own = provenance([*groups, *attacked])
    headline = table(spec, groups, metrics)
    total = sum(stage.total for stage in stages)
    sources = list(dict.fromkeys(cell.source for row in headline.rows for cell in row.cells if cell.source))
    comparisons = [(title, found) for title in COMPARED.values() if (found := _of(figures, "compare", title))]
    return env.get_template("page.html.j2").render(
        spec=spec,
        groups=groups,
        headline=headline,
        changes=changes,
        requests=requests,
        requests_legend=legend_of(spec),
        full=table(spec, groups, metrics, headline=False),
        seeds=by_seed(spec, groups, metrics),
        many=sum(group.kind == "unlearned" for group in groups) > MANY,
        sources=sources,
        figures=figures,
        comparisons=comparisons,
        validations=[figure for figure in figures if figure.section == "validation"],
        in_parts=any(len(found) > 1 for _, found in comparisons),
        undrawn=_undrawn(figures, "compare", COMPARED.values()),
        unmeasured=[
            _undrawn(figures, f"method {i}", [title for title, _ in PANELS.values()])
            for i, group in enumerate(groups)
            if group.runs
        ],
        facts=_facts(spec, groups),
        stages=stages,
        kinds=_kinds(stages),
        longest=max((stage.total for stage in stages), default=0.0) or 1.0,
        total=total,
        startup_share=sum(stage.startup for stage in stages) / total if total else 0.0,
        judges=judges(groups),
        metrics=[
            metric for metric in metrics if any(metric.key in r.metrics for group in groups for r in group.results)
        ],
        shared=shared,
        own=own,
        config=yaml.safe_dump(spec.model_dump(mode="json")["config"], sort_keys=False, allow_unicode=True),
        arrows=ARROWS,
        directions=DIRECTIONS,
        legend=LEGEND,
        none=NONE,
        light_colours=dict(_variables(COLOURS)),
        dark_colours=dict(_variables(DARK)),
    )


def inline(figure: Figure) -> str:
    """A figure's SVG as an element of the page: own ids, the page's colours and width, no declarations or metadata."""
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
    """What all steps' records agree on, and what is left of each: dotted key -> value, and by step."""
    records = {
        f"{result.entry.model_id}: {step}": _flat(record)
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


def _kinds(stages: Sequence[StepTiming]) -> list[tuple[str, int, StepTiming]]:
    """(kind, how many, their times summed) of the steps, in the order in which they run."""
    kinds: dict[str, list[StepTiming]] = {}
    for stage in stages:
        kinds.setdefault(stage.step, []).append(stage)
    return [(kind, len(found), _sum(kind, found)) for kind, found in kinds.items()]


def _sum(kind: str, stages: Sequence[StepTiming]) -> StepTiming:
    flags = tuple(sorted({flag for stage in stages for flag in stage.flags}))
    seconds = [math.fsum(getattr(stage, part) for stage in stages) for part in ("startup", "work", "write")]
    return StepTiming(kind, kind, *seconds, flags)


def _facts(spec: ReportSpec, groups: Sequence[Group]) -> list[tuple[str, str]]:
    seeds = sorted({r.entry.seed for group in groups for r in group.results if r.entry.seed is not None})
    facts = [("Benchmark", spec.benchmark), ("Forget split", spec.split), ("Model", spec.model)]
    facts.append(("Evaluated", f"{sum(len(group.results) for group in groups)} models"))
    return facts + ([("Seeds", ", ".join(map(str, seeds)))] if seeds else [])


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        parts = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}
    if not prefix:
        return {}
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return NONE
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _variables(colours: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"series-{i}", colour) for i, colour in enumerate(colours)]
