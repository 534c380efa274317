"""Figures over optimizer steps: quantities compared between methods, and each method's own."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.logs import STATE
from pipeline.report.read import Group
from pipeline.report.style import COLOURS, HEIGHT, LEGEND_ROW, MARKERS, Figure, Look, axes_of, legend, look_of, scale

PER_PANEL = 6  # methods; more lines than that cannot be told apart
DRAWN = 60  # methods; a sweep may have thousands, whose figures would take hours to draw and minutes to open

NAMES = {
    "forget_loss": "forget loss",
    "retain_loss": "retain loss",
    "forget_grad_norm": "forget gradient",
    "retain_grad_norm": "retain gradient",
    "update_norm": "update",
    "grad_cosine": "cosine",
    "forget_alignment": "A_f",
    "retain_alignment": "A_r",
    "retain_nll": "retain NLL",
    "dual": "dual variable",
    "score": "score",
    "forget_probability": "forget probability",
    "retain_probability": "retain probability",
}
COMPARED = {
    "forget_loss": "Forget loss",
    "retain_loss": "Retain loss",
    "retain_nll": "Retain NLL of a fixed batch",
    "grad_cosine": "Cosine of the two gradients",
    "forget_alignment": "Alignment A_f with the forget gradient",
    "retain_alignment": "Alignment A_r with the retain gradient",
    "update_norm": "Norm of the update",
}
PANELS = {
    "losses": ("Losses", ("forget_loss", "retain_loss")),
    "norms": ("Norms", ("forget_grad_norm", "retain_grad_norm", "update_norm")),
    "cosine": ("Cosine of the two gradients", ("grad_cosine",)),
    "alignment": ("Alignment of the update", ("forget_alignment", "retain_alignment")),
}
# Of validation, which is off by default: the first comparisons, and then the panel of each method that has it.
TRAJECTORY = {
    "score": "Validation score",
    "forget_probability": "Validation: forget probability",
    "retain_probability": "Validation: retain probability",
}
VALIDATION = "Validation"
OWN = {"dual": ("Dual variable", ("dual",))}  # which few methods have
LOOKS = tuple(Look(COLOURS[i], marker) for i, marker in zip((1, 0, 2), MARKERS, strict=False))
MEASURED_AT_TIMES = {"retain_nll"}  # at the end of an epoch: points are joined, what lies between is no gap


@dataclass(frozen=True)
class Line:
    """One quantity over optimizer steps.

    Attributes:
        label: its name in the legend
        look: how it is drawn
        steps: the steps
        mean: mean over the seeds' finite values at each step; NaN where no seed has one
        low: least of these values
        high: largest of these values
        seeds: number of seeds
        gaps: whether a seed has no finite value somewhere
        selected: the steps whose weights were written
        axis: what the steps are
    """

    label: str
    look: Look
    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    seeds: int
    gaps: bool
    selected: Sequence[float] = ()
    axis: str = "optimizer step"

    @property
    def corners(self) -> list[tuple[float, float]]:
        """What bounds the line."""
        values = self.finite
        return [(self.steps[0], min(values)), (self.steps[-1], max(values))]

    @property
    def finite(self) -> list[float]:
        return [value for value in (*self.low, *self.high) if math.isfinite(value)]


def draw(groups: Sequence[Group], attacked: Sequence[Group] = ()) -> list[Figure]:
    """The comparisons, then each method's own figures, of what the step logs of the first methods have values for; at
    the end the loss of every attack that trains."""
    figures: list[Figure] = []
    logged = [(i, group) for i, group in enumerate(groups) if group.runs][:DRAWN]
    for key, title in COMPARED.items():
        lines = [line_of(group.title, look_of(groups, group), group, key) for _, group in logged]
        figures += compared(f"compare-{key.replace('_', '-')}", "compare", title, lines)
    for key, title in TRAJECTORY.items():
        lines = [trajectory_of(group.title, look_of(groups, group), group, key) for _, group in logged]
        figures += compared(f"validation-{key.replace('_', '-')}", "validation", title, lines)
    names = _names(groups)
    for i, group in logged:
        for panel, (title, keys) in {**PANELS, **OWN, **_states(group)}.items():
            lines = [line_of(_name(key), look, group, key) for key, look in zip(keys, LOOKS, strict=False)]
            seen = [line for line in lines if line.finite]
            if seen:
                figures.append(_panel(f"{names[i]}-{panel}", f"method {i}", title, lines, len(lines) > 1))
        if group.trajectories:
            lines = [trajectory_of(_name(key), look, group, key) for key, look in zip(TRAJECTORY, LOOKS, strict=True)]
            figures.append(_panel(f"{names[i]}-validation", f"method {i}", VALIDATION, lines, True))
    return [*figures, *_relearned(groups, attacked)]


def _relearned(groups: Sequence[Group], attacked: Sequence[Group]) -> list[Figure]:
    """The loss on what is learned again, a figure for each attack; after a later request as after the first."""
    figures = []
    looks = {(group.method, group.variant): look_of(groups, group) for group in groups}
    for attack in dict.fromkeys(group.attack for group in attacked):
        lines = []
        for group in attacked:
            logs = [result.losses for result in group.results if result.losses is not None]
            if group.attack == attack and logs:
                look = looks[(group.method, group.variant)]
                lines.append(_line(group.title_with_request, look, logs, "loss"))
        figures += compared(f"relearn-{plain_name(str(attack))}", "robustness", f"Loss during {attack}", lines)
    return figures


def compared(name: str, section: str, title: str, lines: Sequence[Line]) -> list[Figure]:
    """One panel, or several on the same scales where there are many lines."""
    seen = [line for line in lines if line.finite]
    if not seen:
        return []
    count = math.ceil(len(seen) / PER_PANEL)
    if count == 1:
        return [_panel(name, section, title, lines, len(lines) > 1)]
    size = math.ceil(len(seen) / count)
    figures = []
    for i in range(count):
        absent = [line for line in lines if line not in seen] if i == 0 else []
        own = [*seen[i * size : (i + 1) * size], *absent]
        figures.append(_panel(f"{name}-{i + 1}", section, title, own, True, seen, f"{i + 1} of {count}"))
    return figures


def _panel(
    name: str,
    section: str,
    title: str,
    lines: Sequence[Line],
    named: bool,
    scaled_for: Sequence[Line] = (),
    part: str = "",
) -> Figure:
    """One panel, with a legend if ``named``; its scales have room for the lines ``scaled_for``, too."""
    seen = [line for line in lines if line.finite]
    room = scaled_for or seen
    values = [value for line in room for value in line.finite]
    rows = math.ceil(len(seen) / 3) if named else 0
    with axes_of(f"{title} ({part})" if part else title, HEIGHT + rows * LEGEND_ROW) as (axes, save):
        caption = [scale(axes, values)]
        for i, line in enumerate(seen):
            if line.seeds > 1:
                axes.fill_between(line.steps, line.low, line.high, color=line.look.colour, alpha=0.2, linewidth=0)
            # Markers tell lines apart without colour; apart from each other, so that they do not cover one another.
            every = max(1, len(line.steps) // 7)
            axes.plot(line.steps, line.mean, linewidth=1.2, **line.look.line, markevery=(every * i // len(seen), every))
            axes.plot(*_lone(line), linestyle="", marker=".", markersize=4, color=line.look.colour)
            chosen = [line.mean[line.steps.index(step)] for step in line.selected]
            ring: dict[str, Any] = {"linestyle": "", "marker": "o", "fillstyle": "none", "markersize": 9}
            axes.plot(line.selected, chosen, **ring, color=line.look.colour)
        axes.set_xlabel(seen[0].axis)
        if scaled_for:
            axes.update_datalim([point for line in room for point in line.corners])
            axes.autoscale_view()
        if rows:
            legend(axes, [(line.label, line.look.line) for line in seen], columns=3)
        svg = save()
    absent = [line.label for line in lines if line not in seen]
    gaps = [line.label for line in seen if line.gaps]
    if any(line.selected for line in seen):
        caption.append(f"Circled: the {seen[0].axis.rpartition(' ')[2]}s whose weights were written.")
    if absent:
        caption.append(f"Not measured: {', '.join(absent)}.")
    if gaps:
        caption.append(f"Gaps, where a step has no finite value: {', '.join(gaps)}.")
    return Figure(name, section, title, " ".join(filter(None, caption)), svg, part)


def line_of(label: str, look: Look, group: Group, key: str) -> Line:
    """A quantity of the group's step logs."""
    return _line(label, look, group.runs, key)


def trajectory_of(label: str, look: Look, group: Group, key: str) -> Line:
    """A quantity of the group's trajectories."""
    found = group.trajectories
    selected = sorted({float(trajectory.selected) for trajectory in found})
    return _line(label, look, [trajectory.columns for trajectory in found], key, selected)


def _line(
    label: str, look: Look, logs: Sequence[Mapping[str, Sequence[float]]], key: str, selected: Sequence[float] = ()
) -> Line:
    found: dict[float, list[float]] = {}
    for run in logs:
        for step, value in zip(run["step"], run.get(key, ()), strict=False):
            found.setdefault(step, []).append(value)
    finite = {step: [v for v in values if math.isfinite(v)] for step, values in sorted(found.items())}
    if key in MEASURED_AT_TIMES:
        finite = {step: values for step, values in finite.items() if values}
    gaps = key not in MEASURED_AT_TIMES and any(len(finite[step]) < len(found[step]) for step in finite)
    columns = [(statistics.fmean(v), min(v), max(v)) if v else (math.nan,) * 3 for v in finite.values()]
    mean, low, high = zip(*columns, strict=True) if columns else ((), (), ())
    return Line(label, look, list(finite), mean, low, high, len(logs), gaps, selected)


def _lone(line: Line) -> tuple[list[float], list[float]]:
    """Points between two gaps, which no line shows."""
    there = [False, *map(math.isfinite, line.mean), False]
    alone = [i for i in range(len(line.steps)) if there[i + 1] and not there[i] and not there[i + 2]]
    return [line.steps[i] for i in alone], [line.mean[i] for i in alone]


def _states(group: Group) -> dict[str, tuple[str, tuple[str, ...]]]:
    """A panel for each number of the rule's state that moves; the dual variable has one already."""
    moving: dict[str, tuple[str, tuple[str, ...]]] = {}
    for key in sorted({key for run in group.runs for key in run if key.startswith(STATE)} - {f"{STATE}dual"}):
        if any(len({v for v in run.get(key, ()) if math.isfinite(v)}) > 1 for run in group.runs):
            moving[f"state-{plain_name(key.removeprefix(STATE))}"] = (f"State of the rule: {_name(key)}", (key,))
    return moving


def _name(key: str) -> str:
    return NAMES.get(key, key.removeprefix(STATE))


def plain_name(text: str) -> str:
    """Letters, digits and dashes of a text, for a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def _names(groups: Sequence[Group]) -> list[str]:
    """A file name for each group, no two alike."""
    names: list[str] = []
    for i, group in enumerate(groups):
        parts = [group.method, group.variant] if group.variant else [group.method]
        name = plain_name("-".join(parts)) or str(i)
        names.append(f"{name}-{i}" if name in names else name)
    return names
