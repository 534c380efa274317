"""The headline table for a paper: LaTeX with the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.benchmarks.base import Metric
from pipeline.report import publications
from pipeline.report.read import Group
from pipeline.report.tables import LEGEND, Cell, table
from pipeline.specs import ReportSpec

ARROWS = {"higher": "$\\uparrow$", "lower": "$\\downarrow$", "one": "$\\to 1$", "zero": "$\\to 0$", None: ""}
SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"±": r"$\pm$", "Δ": r"$\Delta$", "→": r"$\to$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "−": "$-$"},
}


def render(spec: ReportSpec, groups: Sequence[Group], metrics: Sequence[Metric]) -> str:
    """The table as a ``tabular``, best values bold, published numbers in parentheses with their sources as notes.

    Args:
        spec: What to report.
        groups: The rows.
        metrics: The catalogue.
    """
    found = table(spec, groups, metrics)
    titles = ["Model", "Seeds", *(f"{escape(m.title)} {ARROWS[m.better]}".strip() for m in found.metrics)]
    lines = [_line(titles), "\\midrule"]
    for row in found.rows:
        notes = ", ".join(row.group.notes())
        title = escape(row.group.title) + (f" ({escape(notes)})" if notes else "")
        lines.append(_line([title, str(len(row.group.results)), *(_cell(cell, found.sources) for cell in row.cells)]))
    sources = [f"% [{i}] {escape(source)}" for i, source in enumerate(found.sources, 1)]
    if sources and (sentence := publications.sentence(spec, groups)):
        sources.append(f"% {escape(sentence)}")
    head = f"% {escape(f'{spec.experiment}: {spec.benchmark} {spec.split}, {spec.model}')}"
    columns = "lr" + "r" * len(found.metrics)
    body = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", *lines, "\\bottomrule", "\\end{tabular}"]
    return "\n".join([head, f"% {escape(LEGEND)}", *sources, "% needs \\usepackage{booktabs}", *body, ""])


def escape(text: str) -> str:
    """A text that LaTeX takes for nothing but a text, on one line."""
    return "".join(SPECIAL.get(char, char) for char in re.sub(r"\s+", " ", text))


def _cell(cell: Cell, sources: Sequence[str]) -> str:
    text = escape(cell.text)
    quoted = "; ".join(f"{escape(shown)} [{sources.index(source) + 1}]" for shown, source in cell.published)
    return (f"\\textbf{{{text}}}" if cell.best else text) + (f" ({quoted})" if quoted else "")


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
