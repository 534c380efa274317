"""How models do after each of several requests to forget: MUSE's sustainability and scalability."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.benchmarks.base import Metric
from pipeline.report.read import Group
from pipeline.report.style import HEIGHT, INK, LEGEND_ROW, WIDTH, Figure, axes_of, legend, look_of
from pipeline.report.tables import ARROWS, NONE, are_counts, as_line, escape, formatted
from pipeline.specs import ReportSpec

LEGEND = {
    "sustainability": "Requests one after the other: each model starts from the one that has forgotten those before.",
    "scalability": "Growing requests: each holds the one before it, and each model starts from target.",
}
MEASURED = (
    "All are asked the same: about the first request, what later ones add, and what is to be kept. Means over seeds."
)


@dataclass(frozen=True)
class Row:
    """One model's values after each request: the mean of the seeds that have one, or ``None``, and the same as text."""

    group: Group
    values: tuple[float | None, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    metric: Metric
    rows: tuple[Row, ...]


def tables(groups: Sequence[Group], later_requests: Sequence[Group], metrics: Sequence[Metric]) -> list[Table]:
    """A table for each headline metric that has a value: rows are unlearned models, columns are requests.

    Args:
        groups: the models after the first request
        later_requests: the models after each further one
        metrics: the metrics, in the order of the tables
    """
    if not later_requests:
        return []
    last = max(group.request for group in later_requests)
    series = [
        (group, [group, *(_same(group, request, later_requests) for request in range(2, last + 1))])
        for group in groups
        if group.kind == "unlearned"
    ]
    found = []
    for metric in metrics:
        means = [[None if other is None else other.mean(metric.key) for other in own] for _, own in series]
        values = [value for row in means for value in row if value is not None]
        if not metric.headline or not values:
            continue
        whole = are_counts(values)
        rows = [
            Row(group, tuple(row), tuple(NONE if value is None else formatted(metric, value, whole) for value in row))
            for (group, _), row in zip(series, means, strict=True)
        ]
        found.append(Table(metric, tuple(rows)))
    return found


def draw(groups: Sequence[Group], found: Sequence[Table]) -> list[Figure]:
    """A figure for each table: a line for each model over requests, target and retrain as level lines."""
    return [_figure(groups, table) for table in found]


def legend_of(spec: ReportSpec) -> str:
    return f"{LEGEND[spec.requests]} {MEASURED}" if spec.requests else ""


def as_markdown(spec: ReportSpec, found: Sequence[Table]) -> str:
    """The tables, each under a heading."""
    parts = []
    for table in found:
        requests = range(1, len(table.rows[0].cells) + 1)
        lines = [as_line(["Model", *(f"Request {k}" for k in requests)]), as_line(["---", *["---:"] * len(requests)])]
        lines += [as_line([escape(row.group.title), *row.cells]) for row in table.rows]
        title = f"{table.metric.title} {ARROWS[table.metric.better]}".strip()
        parts.append("\n".join([f"## Requests to forget: {escape(title)}", "", legend_of(spec), "", *lines, ""]))
    return "\n".join(parts)


def _same(group: Group, request: int, later_requests: Sequence[Group]) -> Group | None:
    """The models of the same method and variant after another request; a partial report may have none."""
    key = (group.method, group.variant, request)
    return next((other for other in later_requests if (other.method, other.variant, other.request) == key), None)


def _figure(groups: Sequence[Group], table: Table) -> Figure:
    metric = table.metric
    references = [group for group in groups if group.kind != "unlearned" and group.mean(metric.key) is not None]
    entries = len(table.rows) + len(references)
    title = f"{metric.title} after each request"
    items = []
    with axes_of(title, HEIGHT + 0.5 + math.ceil(entries / 2) * LEGEND_ROW, WIDTH + 0.4) as (axes, save):
        for row in table.rows:
            points = [(k, value) for k, value in enumerate(row.values, 1) if value is not None]
            look = look_of(groups, row.group).line
            if points:
                axes.plot(*zip(*points, strict=True), **look)
                items.append((row.group.title, look))
        for group in references:
            dash = "--" if group.kind == "target" else ":"
            level = statistics.fmean(group.values(metric.key))
            axes.axhline(level, color=INK, linewidth=1.0, linestyle=dash, zorder=1)
            items.append((f"{group.title} (reference)", {"color": INK, "linestyle": dash, "linewidth": 1.0}))
        axes.set_xticks(range(1, len(table.rows[0].cells) + 1))
        axes.set_xlabel("request")
        axes.margins(0.09)
        legend(axes, items, columns=2)
        svg = save()
    return Figure(f"requests-{metric.key.replace('_', '-')}", "requests", title, "", svg)
