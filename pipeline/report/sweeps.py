"""Heat maps of sweeps: a headline metric over two of the swept keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.benchmarks.base import Metric
from pipeline.config.sweeps import text
from pipeline.report.curves import plain_name
from pipeline.report.read import Group
from pipeline.report.style import COLOURS, INK, WIDTH, Figure, axes_of
from pipeline.report.tables import are_counts, badness, formatted
from pipeline.specs import ReportSpec

CELL = 0.42  # inches, the height of a row
Place = tuple[str, str]


def draw(spec: ReportSpec, groups: Sequence[Group], metrics: Sequence[Metric]) -> list[Figure]:
    """A map for each sweep and headline metric, where at most two keys have several values.

    Args:
        spec: what to report
        groups: the rows
        metrics: the catalogue
    """
    sweeps: dict[str, list[Group]] = {}
    for group in groups:
        if group.swept is not None:
            sweeps.setdefault(group.swept, []).append(group)
    figures = []
    for swept, points in sweeps.items():
        keys = _keys(points)
        if keys is None:
            continue
        for metric in metrics:
            if metric.headline and any(point.values(metric.key) for point in points):
                figures.append(_map(swept, points, keys, metric))
    return figures


def too_many(groups: Sequence[Group]) -> list[str]:
    """The sweeps that no map shows."""
    swept = dict.fromkeys(group.swept for group in groups if group.swept is not None)
    return [name for name in swept if _keys([group for group in groups if group.swept == name]) is None]


def _keys(points: Sequence[Group]) -> tuple[str, str | None] | None:
    """The keys that have several values, upwards and across; ``None`` where there are more than two, or points lack one
    of them."""
    every = dict.fromkeys(key for point in points for key in point.point)
    several = [key for key in every if len({repr(point.point.get(key)) for point in points}) > 1] or list(every)[:1]
    if len(several) > 2 or any(key not in point.point for point in points for key in several):
        return None
    return several[0], several[1] if len(several) > 1 else None


def _map(swept: str, points: Sequence[Group], keys: tuple[str, str | None], metric: Metric) -> Figure:
    """Cells with their values, the darker the better, the chosen one in a frame."""
    from matplotlib.patches import Rectangle

    down, across = keys
    rows = list(dict.fromkeys(_text(point, down) for point in points))
    columns = list(dict.fromkeys(_text(point, across) for point in points))
    whole = are_counts([value for point in points for value in point.values(metric.key)])
    means = {id(point): point.mean(metric.key) for point in points}
    goods = {place: -badness(metric, mean) for place, mean in means.items() if mean is not None}
    low, high = min(goods.values()), max(goods.values())
    title = f"{swept}: {metric.title}"
    with axes_of(title, 1.1 + CELL * len(rows), max(WIDTH, 1.6 + 0.75 * len(columns))) as (axes, save):
        for point in points:
            x, y, mean = columns.index(_text(point, across)), rows.index(_text(point, down)), means[id(point)]
            if mean is None or not math.isfinite(mean):
                continue
            share = (goods[id(point)] - low) / (high - low) if high > low else 0.5
            alpha = (0.08 + 0.47 * share) if metric.better else 0.15
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=COLOURS[0], alpha=alpha, linewidth=0))
            if point.choice:
                corner = (x - 0.47, y - 0.47)
                axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=COLOURS[1], linewidth=1.8))
            shown = formatted(metric, mean, whole) + ("" if point.sound else " *")
            axes.text(x, y, shown, ha="center", va="center", fontsize=8, color=INK)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), ylabel=down, xlabel=across or "")
        axes.set_xticks(range(len(columns)), columns if across else [""])
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(False)
        svg = save()
    caption = ["Mean over seeds; the darker, the better."] if metric.better else ["Mean over seeds."]
    if any(point.choice for point in points):
        caption.append(f"Framed: {next(point.choice for point in points if point.choice)}.")
    if not all(point.sound for point in points):
        caption.append("*: flagged collapsed, unchanged or over-budget.")
    name = f"sweep-{plain_name(swept)}-{plain_name(metric.key)}"
    return Figure(name, "sweeps", title, " ".join(caption), svg)


def _text(point: Group, key: str | None) -> str:
    value = None if key is None else point.point.get(key)
    return value if isinstance(value, str) else text(value)
