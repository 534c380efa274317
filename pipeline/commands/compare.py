"""``unlearn compare``: what differs between two finished experiments, with significance over seeds."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.located_yaml import ConfigError
from pipeline.data.errors import DataError, printable
from pipeline.report import comparison
from pipeline.report.comparison import Difference, Values

SIGNIFICANT = 0.05
NONE = "-"
USAGE = """
unlearn compare results/mini-seeds other/results/mini-seeds
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    for name, what in (("first", "RESULTS_A"), ("second", "RESULTS_B")):
        parser.add_argument(name, type=Path, metavar=what, help="an experiment's folder of results, with its report")


def main(given: argparse.Namespace) -> int:
    """Print what differs; returns the exit status: 0, or 2 where results cannot be read."""
    try:
        first, second = comparison.load(given.first), comparison.load(given.second)
    except (ConfigError, DataError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    lines = [f"A: {given.first}", f"B: {given.second}"]
    for title in ("config", "data", "versions"):
        lines += ["", *_values(title, getattr(first, title), getattr(second, title))]
    for name, own, other in (("A", first, second), ("B", second, first)):
        lines += [f"only in {name}: {row}" for row in own.rows if row not in other.rows]
    lines += ["", *_metrics(comparison.metrics(first, second))]
    print(printable("\n".join(lines)))
    return 0


def _values(title: str, first: Values, second: Values) -> list[str]:
    found = comparison.differing(first, second)
    if not found:
        return [f"{title}: the same"]
    return [f"{title}: {len(found)} differ", *(f"  {key}: {a or NONE} | {b or NONE}" for key, a, b in found)]


def _metrics(found: Sequence[Difference]) -> list[str]:
    if not found:
        return ["metrics: the same in every row that both have"]
    rows = [["model", "metric", "A", "B", "B - A", "p"]]
    for one in found:
        sides = [[value for value in side if value is not None] for side in (one.first, one.second)]
        means = [statistics.fmean(values) if values else None for values in sides]
        change = NONE if None in means else f"{means[1] - means[0]:+.3g}"  # type: ignore[operator]  # neither is None
        star = "*" if one.p is not None and one.p < SIGNIFICANT else ""
        shown = [*map(_spread, sides), change, NONE if one.p is None else f"{one.p:.2g}{star}"]
        rows.append([one.model, one.metric, *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    legend = (
        f"p: Welch's t-test over seeds, by Holm's method for all tests together; * under {SIGNIFICANT}. "
        f"{NONE}: fewer than two seeds on a side, seeds that do not differ, or a number whose square no float holds"
    )
    return [f"metrics: {len(found)} differ", *table, legend]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return NONE
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4g}{spread}"
