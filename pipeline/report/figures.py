"""The figures: small SVG files that a page can inline and recolour."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.results import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, GRID = "#24292f", "#d8dee4"
# Okabe and Ito's colours, darkened where they are too pale for lines; the page swaps them in the dark.
COLOURS = ("#0072b2", "#c4560a", "#008563", "#b0578d", "#2f8fc4", "#a87900", "#6a51a3", "#7a4b2a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pipeline.report",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    **{key: INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
}
WIDTH, HEIGHT, LEGEND_ROW = 4.0, 2.5, 0.19  # inches
FLOOR = 1e-20  # p-values below it are drawn on it
SIGNIFICANT = 0.05

NAMES = {
    "forget_loss": "forget loss",
    "retain_loss": "retain loss",
    "forget_grad_norm": "forget gradient",
    "retain_grad_norm": "retain gradient",
    "update_norm": "update",
    "grad_cosine": "cosine",
    "forget_alignment": "A_f",
    "retain_alignment": "A_r",
    "dual": "dual variable",
}
COMPARED = {
    "forget_loss": "Forget loss",
    "retain_loss": "Retain loss",
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
    "dual": ("Dual variable", ("dual",)),
}
LOOKS = ((COLOURS[1], MARKERS[0]), (COLOURS[0], MARKERS[1]), (COLOURS[2], MARKERS[2]))
TRADE_OFFS = {"forget_quality": "Forget quality (p-value)", "forget_probability": "Forget probability"}


@dataclass(frozen=True)
class Figure:
    """``section``: "trade-off", "compare", or "method 0" and so on for a group's own curves."""

    name: str
    section: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Line:
    label: str
    colour: str
    marker: str
    runs: Sequence[tuple[Sequence[float], Sequence[float]]]


def draw(groups: Sequence[Group]) -> list[Figure]:
    """Every figure that the results have values for, in the order of the page."""
    figures = [_trade_off(groups, key) for key in TRADE_OFFS if any(_points(group, key) for group in groups)]
    logged = [(i, group) for i, group in enumerate(groups) if group.runs]
    for key, title in COMPARED.items():
        lines = [Line(group.title, *_style(groups, group), _columns(group, key)) for _, group in logged]
        figures += _curves(f"compare-{key.replace('_', '-')}", "compare", title, lines)
    names = _names(groups)
    for i, group in logged:
        for panel, (title, keys) in PANELS.items():
            lines = [Line(NAMES[key], *look, _columns(group, key)) for key, look in zip(keys, LOOKS, strict=False)]
            figures += _curves(f"{names[i]}-{panel}", f"method {i}", title, lines)
    return figures


def _curves(name: str, section: str, title: str, lines: Sequence[Line]) -> list[Figure]:
    """One panel over optimizer steps, a thin line a seed; no panel where there is nothing to draw."""
    seen = [line for line in lines if any(_finite(y) for _, y in line.runs)]
    if not seen:
        return []
    values = [value for line in seen for _, y in line.runs for value in _finite(y)]
    rows = math.ceil(len(seen) / 3) if len(lines) > 1 else 0
    with _axes(title, HEIGHT + rows * LEGEND_ROW) as (axes, save):
        caption = [_scale(axes, values)]
        for i, line in enumerate(seen):
            look = {"color": line.colour, "alpha": 0.95 if len(line.runs) == 1 else 0.65}
            for x, y in line.runs:
                # Markers tell lines apart without colour; apart from each other, so that they do not cover one another.
                every = max(1, len(x) // 7)
                marks = {"marker": line.marker, "markersize": 4, "markevery": (every * i // len(seen), every)}
                axes.plot(x, y, linewidth=1.1, **marks, **look)
                lone = [j for j in range(len(y)) if not _finite(y[max(j - 1, 0) : j]) and not _finite(y[j + 1 : j + 2])]
                axes.plot([x[j] for j in lone], [y[j] for j in lone], linestyle="", marker=".", markersize=4, **look)
        axes.set_xlabel("optimizer step")
        if rows:
            _legend(
                axes,
                [(line.label, {"color": line.colour, "marker": line.marker, "markersize": 4}) for line in seen],
                columns=3,
            )
        svg = save()
    absent = [line.label for line in lines if line not in seen]
    gaps = [line.label for line in seen if any(len(_finite(y)) < len(y) for _, y in line.runs)]
    if absent:
        caption.append(f"Not measured: {', '.join(absent)}.")
    if gaps:
        caption.append(f"Gaps, where a step has no finite value: {', '.join(gaps)}.")
    return [Figure(name, section, title, " ".join(filter(None, caption)), svg)]


def _trade_off(groups: Sequence[Group], key: str) -> Figure:
    """A point a model, the mean over seeds, with small points for the seeds; references in the text's colour."""
    log = key == "forget_quality"
    title = f"{TRADE_OFFS[key]} against model utility"
    low = log and any(y < FLOOR for group in groups for _, y in _points(group, key))
    legend, missing = [], []
    with _axes(title, HEIGHT + 0.5 + math.ceil(len(groups) / 2) * LEGEND_ROW, WIDTH + 0.4) as (axes, save):
        for group in groups:
            points = [(x, max(y, FLOOR) if log else y) for x, y in _points(group, key)]
            if not points:
                missing.append(group.title)
                continue
            colour, marker = _style(groups, group)
            look = {"color": colour, "marker": marker, "linestyle": "", "fillstyle": "full" if group.sound else "none"}
            if len(points) > 1:
                axes.plot(*zip(*points, strict=True), **look, markersize=3.5, alpha=0.5)
            mean = [statistics.fmean(values) for values in zip(*points, strict=True)]
            look |= {"markersize": 11 if marker == "*" else 7.5, "markeredgewidth": 1.3}
            axes.plot(*[[value] for value in mean], **look)
            role = ", ".join(
                (["reference"] if group.kind != "unlearned" else [])
                + [note for note in group.notes() if not group.sound]
            )
            legend.append((f"{group.title} ({role})" if role else group.title, look))
        axes.margins(0.09)
        axes.set_xlabel("model utility")
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=FLOOR / 20 if low else None, top=20)
            if low:
                axes.set_yticks([10.0**exponent for exponent in range(-20, 1, 5)])
            _plain(
                axes.yaxis, lambda v: f"≤{v:.0e}" if low and v < 1.01 * FLOOR else f"{v:.0e}" if v < 0.01 else f"{v:g}"
            )
            axes.axhline(SIGNIFICANT, color=INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        _legend(axes, legend, columns=2)
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


@contextmanager
def _axes(title: str, height: float, width: float = WIDTH) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes of a figure of its own, and what turns it into SVG text; no state of matplotlib outlives it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.subplots()
        axes.set_title(title)

        def save() -> str:
            out = io.StringIO()
            canvas.savefig(out, format="svg", metadata={"Date": None, "Title": title})
            return out.getvalue()

        yield axes, save


def _legend(axes: Axes, items: Sequence[tuple[str, Mapping[str, object]]], columns: int) -> None:
    from matplotlib.lines import Line2D

    # Legend drops labels that start with an underscore.
    labels = [f"\u200b{label}" if label.startswith("_") else label for label, _ in items]
    handles = [Line2D([], [], **look) for _, look in items]
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=8, columnspacing=1.2)


def _scale(axes: Axes, values: Sequence[float]) -> str | None:
    """A logarithmic scale where a linear one would flatten most of the values; says so."""
    largest = max(abs(value) for value in values)
    if largest <= 30 * max(statistics.median(abs(value) for value in values), 1e-12) or largest <= 2:
        return None
    if min(values) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=1)
    _plain(axes.yaxis, lambda v: f"{v:g}")
    return "Logarithmic scale." if min(values) > 0 else "Logarithmic scale beyond ±1, linear between."


def _plain(axis: Axis, text: Callable[[float], str]) -> None:
    """Tick labels without mathematical markup, which SVG text cannot carry."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value).replace("-", "−")))
    axis.set_minor_formatter(NullFormatter())


def _style(groups: Sequence[Group], group: Group) -> tuple[str, str]:
    """Colour and marker of a group: the same in every figure."""
    if group.kind != "unlearned":
        return INK, "*" if group.kind == "target" else "p"
    i = [other for other in groups if other.kind == "unlearned"].index(group)
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]


def _points(group: Group, key: str) -> list[tuple[float, float]]:
    pairs = [(result.metrics.get("model_utility"), result.metrics.get(key)) for result in group.results]
    return [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]


def _columns(group: Group, key: str) -> list[tuple[Sequence[float], Sequence[float]]]:
    return [(run["step"], [v if math.isfinite(v) else math.nan for v in run[key]]) for run in group.runs]


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _names(groups: Sequence[Group]) -> list[str]:
    """A file name for each group: letters, digits, dots and dashes, no two alike."""
    names: list[str] = []
    for i, group in enumerate(groups):
        parts = [group.method, group.variant] if group.variant else [group.method]
        name = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(parts)).strip("-").lower() or str(i)
        names.append(f"{name}-{i}" if name in names else name)
    return names
