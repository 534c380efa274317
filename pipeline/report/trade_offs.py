"""What is forgotten against what is kept: a figure a pair of metrics, a point a model."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from pipeline.benchmarks.base import Metric
from pipeline.report.read import Group
from pipeline.report.style import HEIGHT, INK, LEGEND_ROW, MANY, WIDTH, Figure, axes_of, legend, look_of, plain
from pipeline.report.tables import badness

FLOOR = 1e-20  # p-values below it are drawn on it
SIGNIFICANT = 0.05
LONG = 26  # characters of a title, with which the legend has one column


def draw(groups: Sequence[Group], metrics: Sequence[Metric], trade_offs: Sequence[tuple[str, str]]) -> list[Figure]:
    """Draw the pairs of metrics that the results have values for.

    Args:
        groups: The report's models, an unlearned one with its seeds.
        metrics: Every metric of the report.
        trade_offs: Keys of metrics to draw against each other, across and upwards.

    Returns:
        The figures, in the order of ``trade_offs``.
    """
    titled = {metric.key: metric for metric in metrics}
    wanted = [(titled[x], titled[y]) for x, y in trade_offs]
    drawn = [(x, y) for x, y in wanted if any(_points(group, x, y) for group in groups)]
    upwards = Counter(y.key for _, y in drawn)
    return [_trade_off(groups, x, y, f"-{x.key}" if upwards[y.key] > 1 else "") for x, y in drawn]


def _trade_off(groups: Sequence[Group], x: Metric, y: Metric, against: str) -> Figure:
    """A point a model, the mean over seeds, with small points for the seeds; references in the text's colour."""
    log = y.key.startswith("forget_quality")
    across = x.title.lower() if x.title[1:].islower() else x.title  # names keep their capitals
    upwards = f"{y.title} (p-value)" if log else y.title
    title = f"{upwards} against {across}"
    low = log and any(value < FLOOR for group in groups for _, value in _points(group, x, y))
    many = sum(group.kind == "unlearned" for group in groups) > MANY
    columns = 1 if many or max(len(group.title) for group in groups) > LONG else 2
    below = 0.0 if many else 0.5 + math.ceil(len(groups) / columns) * LEGEND_ROW
    size = (max(3.6, (len(groups) + 2) * LEGEND_ROW), 8.0) if many else (HEIGHT + below, WIDTH + 0.4)
    items, missing = [], []
    with axes_of(title, *size) as (axes, save):
        for group in groups:
            points = [(u, max(v, FLOOR) if log else v) for u, v in _points(group, x, y)]
            if not points:
                missing.append(group.title)
                continue
            look = {**look_of(groups, group).point, "fillstyle": "full" if group.sound else "none"}
            mean = [statistics.fmean(values) for values in zip(*points, strict=True)]
            for point in points if len(points) > 1 else ():
                axes.plot(*zip(mean, point, strict=True), color=look["color"], linewidth=0.7, alpha=0.45)
                axes.plot(*[[value] for value in point], **look, markersize=3.2, alpha=0.55)
            look |= {"markersize": 11 if look["marker"] == "*" else 7.5, "markeredgewidth": 1.3}
            axes.plot(*[[value] for value in mean], **look)
            role = "reference" if group.kind != "unlearned" else "" if group.sound else "flagged"
            items.append((f"{group.title} ({role})" if role else group.title, look))
        best = front(groups, x, y)
        if len(best) > 1:
            ends = [(u, max(v, FLOOR) if log else v) for u, v in best]
            axes.plot(*zip(*ends, strict=True), color=INK, linewidth=0.9, linestyle=(0, (4, 2, 1, 2)), zorder=1)
        axes.margins(0.09)
        axes.set_xlabel(across)
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=FLOOR / 20 if low else None, top=20)
            if low:
                axes.set_yticks([10.0**exponent for exponent in range(-20, 1, 5)])
            plain(
                axes.yaxis, lambda v: f"≤{v:.0e}" if low and v < 1.01 * FLOOR else f"{v:.0e}" if v < 0.01 else f"{v:g}"
            )
            axes.axhline(SIGNIFICANT, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        legend(axes, items, columns=columns, right=many)
        svg = save()
    caption = _caption(groups, x, y, log, low, len(best) > 1, missing)
    name = f"trade-off-{y.key}{against}".replace("_", "-")
    return Figure(name, "trade-off", title, caption, svg)


def _caption(
    groups: Sequence[Group], x: Metric, y: Metric, log: bool, low: bool, with_front: bool, missing: Sequence[str]
) -> str:
    """What a reader must know of the lines and marks of a figure."""
    caption = []
    if log:
        caption += [
            f"Dashed: p = {SIGNIFICANT}; above it the test, at that level, does not tell the model from retrain."
        ]
    if low:
        caption.append(f"Values below {FLOOR:.0e} are drawn at it.")
    if any(len(_points(group, x, y)) > 1 for group in groups):
        caption.append("Small points: seeds; large: their mean.")
    if not all(group.sound for group in groups):
        caption.append("Hollow: flagged collapsed, unchanged or over-budget.")
    if with_front:
        caption.append(
            "Dashed and dotted: the Pareto front, of models that no other one equals in both means and beats in one."
        )
    fewer = [group.title for group in groups if 0 < len(_points(group, x, y)) < len(group.results)]
    if fewer:
        caption.append(f"Some seeds have no value, which keeps a model out of any front: {', '.join(fewer)}.")
    if missing:
        caption.append(f"No value: {', '.join(missing)}.")
    return " ".join(caption)


def front(groups: Sequence[Group], x: Metric, y: Metric) -> list[tuple[float, float]]:
    """The means of unlearned models that no other one equals in both metrics and beats in one; none where a metric has
    no better side. A model that is flagged, or of which a seed lacks a value, is not among them."""
    if x.better is None or y.better is None:
        return []
    found = []
    for group in groups:
        points = _points(group, x, y)
        if group.kind == "unlearned" and group.sound and len(points) == len(group.results):
            u, v = (statistics.fmean(values) for values in zip(*points, strict=True))
            found.append((badness(x, u), badness(y, v), u, v))
    kept = [
        one
        for one in found
        if not any(other[:2] != one[:2] and other[0] <= one[0] and other[1] <= one[1] for other in found)
    ]
    return [(u, v) for _, _, u, v in sorted(kept)]


def _points(group: Group, x: Metric, y: Metric) -> list[tuple[float, float]]:
    pairs = [(result.metrics.get(x.key), result.metrics.get(y.key)) for result in group.results]
    return [(u, v) for u, v in pairs if u is not None and v is not None and math.isfinite(u) and math.isfinite(v)]
