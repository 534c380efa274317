"""What all figures share: colours, marks, scales, legends, and axes that become small SVG files."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.report.read import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, GRID = "#24292f", "#d8dee4"
# Okabe and Ito's colours, darkened where they are too pale for lines; the page swaps them in the dark.
COLOURS = ("#0072b2", "#c4560a", "#008563", "#b0578d", "#2f8fc4", "#a87900", "#6a51a3", "#7a4b2a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
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
MANY = 8  # models; with more, colours repeat and figures have another shape


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: name of its file, without suffix
        section: where the page shows it: "trade-off", "requests", "compare", "validation", "epochs", or "method 0" and
            so on for a group's own curves
        title: its title
        caption: what a reader must know, in whole sentences
        svg: the figure itself
        part: "2 of 4" for example, where one panel would hold too many lines
    """

    name: str
    section: str
    title: str
    caption: str
    svg: str
    part: str = ""


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    dash: Any = "-"

    @property
    def point(self) -> dict[str, Any]:
        return {"color": self.colour, "marker": self.marker, "linestyle": ""}

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash, "markersize": 4}


def look_of(groups: Sequence[Group], group: Group) -> Look:
    """How a group is drawn, the same in every figure; the first 64 unlearned models all look different."""
    if group.kind != "unlearned":
        return Look(INK, "*" if group.kind == "target" else "p")
    i = [other for other in groups if other.kind == "unlearned"].index(group)
    turn = i // len(COLOURS)
    return Look(COLOURS[i % len(COLOURS)], MARKERS[(i + turn) % len(MARKERS)], DASHES[turn % len(DASHES)])


@contextmanager
def axes_of(title: str, height: float, width: float = WIDTH) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes of a figure of its own, and what turns it into SVG text; no state of matplotlib outlives it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        drawing = Drawing(figsize=(width, height), layout="constrained")
        backend = FigureCanvasSVG(drawing)
        axes = drawing.subplots()
        axes.set_title(title)

        def save() -> str:
            out = io.StringIO()
            # Figure.savefig would draw everything twice, the first time for nothing but the layout.
            backend.print_svg(out, metadata={"Date": None, "Title": title})
            # A hundredth of a point is enough for lines; a page of many methods is a third smaller for it.
            return re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), out.getvalue())

        yield axes, save


def legend(axes: Axes, items: Sequence[tuple[str, Mapping[str, Any]]], columns: int, right: bool = False) -> None:
    """A legend outside the axes: below them in ``columns``, or to their right."""
    from matplotlib.lines import Line2D

    # Legend drops labels that start with an underscore.
    labels = [f"\u200b{label}" if label.startswith("_") else label for label, _ in items]
    handles = [Line2D([], [], **look) for _, look in items]
    place = "outside right upper" if right else "outside lower left"
    axes.figure.legend(handles, labels, loc=place, ncols=columns, fontsize=8, columnspacing=1.2)


def scale(axes: Axes, values: Sequence[float]) -> str | None:
    """A logarithmic scale where a linear one would flatten most of the values; says so."""
    largest = max(abs(value) for value in values)
    if largest <= 30 * max(statistics.median(abs(value) for value in values), 1e-12) or largest <= 2:
        return None
    if min(values) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=1)
    plain(axes.yaxis, lambda v: f"{v:g}")
    return "Logarithmic scale." if min(values) > 0 else "Logarithmic scale beyond ±1, linear between."


def plain(axis: Axis, text: Callable[[float], str]) -> None:
    """Tick labels without mathematical markup, which SVG text cannot carry."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value).replace("-", "−")))
    axis.set_minor_locator(NullLocator())
