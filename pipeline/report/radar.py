"""A radar chart of the headline metrics, as in PDU's Figures 2 and 3 (arXiv 2506.05314): an axis a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.benchmarks.base import Metric
from pipeline.report.read import Group
from pipeline.report.style import GRID, LEGEND_ROW, MANY, Figure, axes_of, legend, look_of
from pipeline.report.tables import badness, formatted
from pipeline.report.trade_offs import LONG

LEAST = 3  # axes, fewer of which enclose nothing
TITLE = "Headline metrics, outer is better"


def draw(groups: Sequence[Group], metrics: Sequence[Metric]) -> list[Figure]:
    """One chart, where at least three headline metrics say which way is better and every row has a value of.

    Args:
        groups: the rows; of a sweep only the chosen point is drawn, where one is
        metrics: the catalogue
    """
    drawn = _drawn(groups)
    axes = [m for m in metrics if m.headline and m.better and all(group.mean(m.key) is not None for group in drawn)]
    goods = [[-badness(m, group.mean(m.key) or 0.0) for group in drawn] for m in axes]
    axes = [m for m, values in zip(axes, goods, strict=True) if max(values) > min(values)]
    goods = [values for values in goods if max(values) > min(values)]
    if len(axes) < LEAST or not any(group.kind == "unlearned" for group in drawn):
        return []
    return [_chart(groups, drawn, axes, goods)]


def _drawn(groups: Sequence[Group]) -> list[Group]:
    chosen = {group.swept for group in groups if group.choice}
    kept = [group for group in groups if group.swept not in chosen or group.choice or group.swept is None]
    others = [group for group in kept if group.kind != "unlearned"]
    return [*others, *[group for group in kept if group.kind == "unlearned"][:MANY]]


def _chart(
    groups: Sequence[Group], drawn: Sequence[Group], metrics: Sequence[Metric], goods: Sequence[Sequence[float]]
) -> Figure:
    angles = [math.pi / 2 - 2 * math.pi * i / len(metrics) for i in range(len(metrics))]
    spokes = [(math.cos(angle), math.sin(angle)) for angle in angles]
    items = []
    columns = 1 if max(len(group.title) for group in drawn) > LONG else 2
    with axes_of(TITLE, 3.9 + math.ceil(len(drawn) / columns) * LEGEND_ROW, 4.8) as (axes, save):
        for ring in (0.25, 0.5, 0.75, 1.0):
            corners = [(ring * x, ring * y) for x, y in (*spokes, spokes[0])]
            axes.plot(*zip(*corners, strict=True), color=GRID, linewidth=0.6, zorder=1)
        for metric, (x, y), values in zip(metrics, spokes, goods, strict=True):
            axes.plot([0, x], [0, y], color=GRID, linewidth=0.6, zorder=1)
            best = max(zip(values, drawn, strict=True), key=lambda one: one[0])[1].mean(metric.key)
            text = f"{metric.title}\n{formatted(metric, best or 0.0, False)}"
            side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
            axes.text(1.08 * x, 1.12 * y, text, ha=side, va="center", fontsize=7.5)
        for i, group in enumerate(drawn):
            shares = [(values[i] - min(values)) / (max(values) - min(values)) for values in goods]
            look = look_of(groups, group)
            line = {**look.line, "linestyle": look.dash if group.kind == "unlearned" else (0, (2, 2))}
            corners = [(share * x, share * y) for share, (x, y) in zip(shares, spokes, strict=True)]
            axes.plot(*zip(*corners, corners[0], strict=True), linewidth=1.2, **line)
            items.append((group.title, line))
        axes.set(xlim=(-1.75, 1.75), ylim=(-1.3, 1.3), aspect="equal")
        axes.axis("off")
        axes.set_title(TITLE)
        legend(axes, items, columns=columns)
        svg = save()
    left = sum(group.kind == "unlearned" for group in groups) - sum(group.kind == "unlearned" for group in drawn)
    caption = "Each axis goes from the worst to the best mean of the rows that are drawn; the best stands beside it."
    if left:
        caption += f" Not drawn: {left} rows, of sweeps all but the chosen point first."
    return Figure("radar", "trade-off", TITLE, caption, svg)
