"""Every figure of a report: small SVG files that a page can inline and recolour."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pipeline.report import curves
from pipeline.report.canvas import HEIGHT, INK, LEGEND_ROW, MANY, WIDTH, Figure, axes_of, legend, look_of, plain
from pipeline.report.results import Group

FLOOR = 1e-20  # p-values below it are drawn on it
SIGNIFICANT = 0.05
TRADE_OFFS = {"forget_quality": "Forget quality (p-value)", "forget_probability": "Forget probability"}


def draw(groups: Sequence[Group]) -> list[Figure]:
    """Every figure that the results have values for, in the order of the page."""
    drawn = [_trade_off(groups, key) for key in TRADE_OFFS if any(_points(group, key) for group in groups)]
    return [*drawn, *curves.draw(groups)]


def _trade_off(groups: Sequence[Group], key: str) -> Figure:
    """A point a model, the mean over seeds, with small points for the seeds; references in the text's colour."""
    log = key == "forget_quality"
    title = f"{TRADE_OFFS[key]} against model utility"
    low = log and any(y < FLOOR for group in groups for _, y in _points(group, key))
    many = sum(group.kind == "unlearned" for group in groups) > MANY
    below = 0.0 if many else 0.5 + math.ceil(len(groups) / 2) * LEGEND_ROW
    size = (max(3.6, (len(groups) + 2) * LEGEND_ROW), 8.0) if many else (HEIGHT + below, WIDTH + 0.4)
    items, missing = [], []
    with axes_of(title, *size) as (axes, save):
        for group in groups:
            points = [(x, max(y, FLOOR) if log else y) for x, y in _points(group, key)]
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
        axes.margins(0.09)
        axes.set_xlabel("model utility")
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=FLOOR / 20 if low else None, top=20)
            if low:
                axes.set_yticks([10.0**exponent for exponent in range(-20, 1, 5)])
            plain(
                axes.yaxis, lambda v: f"≤{v:.0e}" if low and v < 1.01 * FLOOR else f"{v:.0e}" if v < 0.01 else f"{v:g}"
            )
            axes.axhline(SIGNIFICANT, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        legend(axes, items, columns=1 if many else 2, beside=many)
        svg = save()
    caption = []
    if log:
        caption += [
            f"Dashed: p = {SIGNIFICANT}; above it the test, at that level, does not tell the model from retrain."
        ]
    if low:
        caption.append(f"Values below {FLOOR:.0e} are drawn at it.")
    if any(len(_points(group, key)) > 1 for group in groups):
        caption.append("Small points: seeds; large: their mean.")
    if not all(group.sound for group in groups):
        caption.append("Hollow: flagged collapsed or unchanged.")
    if missing:
        caption.append(f"No value: {', '.join(missing)}.")
    return Figure(f"trade-off-{key.replace('_', '-')}", "trade-off", title, " ".join(caption), svg)


def _points(group: Group, key: str) -> list[tuple[float, float]]:
    pairs = [(result.metrics.get("model_utility"), result.metrics.get(key)) for result in group.results]
    return [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
