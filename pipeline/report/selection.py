"""Which point of each sweep is chosen, by what the experiment says, and how every table says it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.benchmarks.base import Metric
from pipeline.report.read import Group, Result
from pipeline.report.tables import badness
from pipeline.specs import ReportEntry, ReportSpec

Worth = tuple[bool, bool, float]  # whether no seed is flagged, whether all are within the budget, and how good it is


def choices(spec: ReportSpec, groups: Sequence[Group], metrics: Sequence[Metric]) -> dict[str, str]:
    """By id of a run, how it was chosen of its sweep's points; runs that were not are left out.

    The numbers are means over seeds. Validation's are those of the step that each run ended in.

    Args:
        spec: what to report
        groups: the rows
        metrics: the catalogue
    """
    sweeps: dict[str, list[Group]] = {}
    for group in groups:
        if group.swept is not None and spec.chosen_by is not None:
            sweeps.setdefault(group.swept, []).append(group)
    catalogue = {metric.key: metric for metric in metrics}
    said: dict[str, str] = {}
    for points in sweeps.values():
        found = [(worth, point) for point in points if (worth := _worth(spec, point, catalogue)) is not None]
        if found:
            worth, best = max(found, key=lambda one: one[0])
            said[_run(best)] = _text(spec, worth, len(points))
    return said


def marked(groups: Sequence[Group], chosen: Mapping[str, str]) -> list[Group]:
    """The groups, those of chosen runs with how they were chosen."""
    return [replace(group, choice=chosen.get(_run(group))) for group in groups]


def _run(group: Group) -> str:
    return run_of(group.results[0].entry)


def run_of(entry: ReportEntry) -> str:
    """What tells the runs of an experiment apart, whatever the seed."""
    return f"{entry.method}-{entry.variant or ''}"


def _worth(spec: ReportSpec, group: Group, catalogue: Mapping[str, Metric]) -> Worth | None:
    """How good a point is; ``None`` where a seed lacks what it is judged by."""
    collapsed = any(result.flags & {"collapsed", "unchanged"} for result in group.results)
    if spec.chosen_by == "test_metric":
        key = str(spec.test_metric)
        values = group.values(key)
        mean = group.mean(key)
        if mean is None or len(values) < len(group.results):
            return None
        return not collapsed, True, -badness(catalogue[key], mean)
    if len(group.trajectories) < len(group.results):
        return None
    if spec.chosen_by == "best-on-validation":
        return not collapsed, True, statistics.fmean(_at_end(result, "score") for result in group.results)
    within = not any("over-budget" in result.flags for result in group.results)
    key, sign = ("forget_probability", -1) if within else (str(spec.budget_metric), 1)
    return not collapsed, within, sign * statistics.fmean(_at_end(result, key) for result in group.results)


def _at_end(result: Result, key: str) -> float:
    """What validation measured of the weights that the run ended in."""
    found = result.trajectory
    assert found is not None
    return found.columns[key][list(found.columns["step"]).index(found.selected)]


def _text(spec: ReportSpec, worth: Worth, points: int) -> str:
    chosen = f"selected of {points} points"
    if spec.chosen_by == "test_metric":
        return f"{chosen} on the test metric {spec.test_metric}"
    if spec.chosen_by == "best-on-validation":
        return f"{chosen} on validation"
    return f"{chosen} within the budget" if worth[1] else f"{chosen}, none of them within the budget"
