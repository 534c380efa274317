"""The benchmark's metrics after every evaluated epoch of unlearning.

They choose nothing: a run ends in its last epoch, or in the one that is best on validation.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pipeline.benchmarks.base import Metric
from pipeline.data.json_files import read_object
from pipeline.report.curves import Line, compared, plain_name
from pipeline.report.read import Group, Result
from pipeline.report.style import Figure, look_of


def draw(groups: Sequence[Group], by_epoch: Sequence[Group], metrics: Sequence[Metric]) -> list[Figure]:
    """A figure for each headline metric that an epoch has a value of: a line for each method, from target on.

    Args:
        groups: the rows
        by_epoch: the same methods' models after each epoch
        metrics: the catalogue
    """
    if not by_epoch:
        return []
    before = [group for group in groups if group.kind == "target"]
    series = [(g, [one for one in by_epoch if _same(g, one)]) for g in groups if g.kind == "unlearned"]
    series = [(group, [*before, *sorted(own, key=lambda one: one.epoch)]) for group, own in series if own]
    figures = []
    for metric in metrics:
        if metric.headline and any(one.values(metric.key) for one in by_epoch):
            lines = [_line(group, own, metric.key, groups) for group, own in series]
            name, title = f"epochs-{plain_name(metric.key)}", f"{metric.title} by epoch"
            figures += compared(name, "epochs", title, lines)
    return figures


def _line(group: Group, own: Sequence[Group], key: str, groups: Sequence[Group]) -> Line:
    there = [(one, values) for one in own if (values := one.values(key))]
    epochs = [float(one.epoch) for one, _ in there]
    chosen = {epoch for result in group.results if (epoch := _chosen(result)) is not None}
    return Line(
        label=group.title,
        look=look_of(groups, group),
        steps=epochs,
        mean=[statistics.fmean(values) for _, values in there],
        low=[min(values) for _, values in there],
        high=[max(values) for _, values in there],
        seeds=len(group.results),
        gaps=len(there) < len(own),
        selected=sorted(chosen.intersection(epochs)),
        axis="epoch",
    )


def _same(group: Group, other: Group) -> bool:
    return (group.method, group.variant) == (other.method, other.variant)


def _chosen(result: Result) -> float | None:
    """The epoch that validation chose; ``None`` where it chose none, or a step between two evaluated ones."""
    if result.entry.run is None or result.trajectory is None or result.trajectory.select == "last":
        return None
    saved = read_object(result.entry.run / "summary.json").get("saved_epochs", {})
    return next((float(epoch) for epoch, step in saved.items() if step == result.trajectory.selected), None)
