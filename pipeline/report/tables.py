"""The results as tables: every number in long form, the headline metrics in Markdown and as plain text."""

from __future__ import annotations

import csv
import io
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.benchmarks.base import Metric
from pipeline.data.errors import printable
from pipeline.report import publications
from pipeline.report.read import Group
from pipeline.specs import FailedRow, ReportSpec

ARROWS = {"higher": "↑", "lower": "↓", "one": "→1", "zero": "→0", None: ""}
NONE = "–"
# How a text may begin that a spreadsheet runs; the last four are the first four in full width.
FORMULA = tuple("=+-@\t\n\uff1d\uff0b\uff0d\uff20")
CSV_COLUMNS = ("experiment", "benchmark", "split", "model", "method", "variant", "seed", "attack", "request", "epoch",
               "swept", "selected", "metric", "value", "published", "published_source")  # fmt: skip
LEGEND = (
    "Mean ± sample standard deviation where a row has several seeds. Arrows: which way is better, →1 or →0 where "
    "closest is. Marked: the best mean of a column among the unlearned models of which no seed is flagged collapsed, "
    "unchanged or over-budget; values that read the same share the mark. A mark says nothing about significance."
)


@dataclass(frozen=True)
class Cell:
    """One metric of one row, as text.

    Attributes:
        mean: over the seeds
        spread: standard deviation, "± 0.01", or how many seeds have a value; empty for one seed
        best: whether it is the best of its column
        published: the numbers of publications with the difference to ours, each with its source
    """

    mean: str
    spread: str
    best: bool
    published: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return f"{self.mean} {self.spread}".strip()


@dataclass(frozen=True)
class Row:
    group: Group
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]

    @property
    def sources(self) -> list[str]:
        """Of its published numbers, each once, in the order in which they appear."""
        cells = [cell for row in self.rows for cell in row.cells]
        return list(dict.fromkeys(source for cell in cells for _, source in cell.published))


def table(spec: ReportSpec, groups: Sequence[Group], metrics: Sequence[Metric], headline: bool = True) -> Table:
    """A table with a row for each model and a column for each metric that has a value.

    Args:
        spec: what to report
        groups: the rows
        metrics: the columns, in their order
        headline: whether only headline metrics are shown, and those that a row has published numbers of

    Raises:
        ValueError: a published number names no metric of the family, or a source has two for one cell
    """
    publications.check(spec, metrics)
    measured = {key for group in groups for result in group.results for key in result.metrics}
    quoted = {m.key for m in metrics if any(publications.numbers(spec, group, m.key) for group in groups)}
    chosen = tuple(m for m in metrics if m.key in measured and (m.headline or not headline or m.key in quoted))
    columns = []
    for metric in chosen:
        values = [value for group in groups for value in group.values(metric.key)]
        whole = are_counts(values)
        best = _best(metric, groups, whole)
        column = []
        for group in groups:
            papers = publications.numbers(spec, group, metric.key)
            shown = tuple((_beside(spec, metric, group, paper.value, whole), paper.source) for paper in papers)
            mean, spread = _texts(metric, group, whole)
            column.append(Cell(mean, spread, mean in best and _candidate(metric, group), shown))
        columns.append(column)
    return Table(chosen, tuple(Row(g, tuple(column[i] for column in columns)) for i, g in enumerate(groups)))


def by_seed(spec: ReportSpec, groups: Sequence[Group], metrics: Sequence[Metric]) -> Table | None:
    """The headline metrics with a row for each seed, none marked; ``None`` where no model has several seeds."""
    if all(len(group.results) == 1 for group in groups):
        return None
    apart = table(spec, [Group((result,)) for group in groups for result in group.results], metrics)
    rows = tuple(Row(row.group, tuple(replace(cell, best=False) for cell in row.cells)) for row in apart.rows)
    return Table(apart.metrics, rows)


def as_csv(spec: ReportSpec, groups: Sequence[Group], metrics: Sequence[Metric]) -> str:
    """Every metric of every evaluation, one value on each line, at full precision; a null value is empty.

    Where several sources publish a number, these and the sources stand in one cell each, with semicolons between them.
    """
    order = {metric.key: i for i, metric in enumerate(metrics)}
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(CSV_COLUMNS)
    for group in groups:
        for result in group.results:
            for key in sorted(result.metrics, key=lambda key: (order.get(key, len(order)), key)):
                value, papers = result.metrics[key], publications.numbers(spec, group, key)
                run = (spec.experiment, spec.benchmark, spec.split, spec.model)
                seed = "" if result.entry.seed is None else result.entry.seed
                request = group.request if group.request > 1 else ""
                who = (group.method, group.variant or "", seed, group.attack or "", request, group.epoch or "")
                shown = ("; ".join(repr(p.value) for p in papers), "; ".join(p.source for p in papers))
                cells = (
                    *run,
                    *who,
                    group.swept or "",
                    group.choice or "",
                    key,
                    "" if value is None else repr(float(value)),
                    *shown,
                )
                lines.writerow([_inert(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def _inert(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe goes before a text that begins as one."""
    text = printable(text)  # a carriage return, which a reader takes for the row's end, is none of a writer's
    if not text.startswith(FORMULA):
        return text
    try:
        [float(part) for part in text.split("; ")]  # the numbers of several publications
        return text
    except ValueError:
        return f"'{text}"


def as_markdown(spec: ReportSpec, groups: Sequence[Group], metrics: Sequence[Metric]) -> str:
    """The headline metrics, best values in bold, published numbers in parentheses."""
    found = table(spec, groups, metrics)
    sources = found.sources
    titles = ["Model", "Seeds", *(f"{m.title} {ARROWS[m.better]}".strip() for m in found.metrics), "Notes"]
    lines = [as_line(escape(title) for title in titles), as_line(["---", *["---:"] * (len(titles) - 2), "---"])]
    for row in found.rows:
        cells = [escape(row.group.title), str(len(row.group.results))]
        for cell in row.cells:
            text = f"**{cell.text}**" if cell.best else cell.text
            quoted = "; ".join(f"{shown} [{sources.index(source) + 1}]" for shown, source in cell.published)
            cells.append(f"{text} ({escape(quoted)})" if quoted else text)
        lines.append(as_line([*cells, escape(", ".join(row.group.notes()))]))
    for failed in spec.failed:
        cells = [escape(failed.title if failed.title in failed.model_id else failed.model_id), "0"]
        lines.append(as_line([*cells, *["–"] * len(found.metrics), escape(f"failed: {reason(failed)}")]))
    heading = f"# {spec.experiment}: {spec.benchmark} {spec.split}, {spec.model}"
    notes = LEGEND
    if sources:
        named = "; ".join(f"[{i}] {source}" for i, source in enumerate(sources, 1))
        larger = ", and by how much ours is larger" if spec.published_of is None else ""
        notes += f" In parentheses: published numbers{larger} ({named})."
        notes = f"{notes} {publications.sentence(spec, groups)}".strip()
    return "\n".join([escape(heading), "", *lines, "", escape(notes), ""])


def reason(failed: FailedRow) -> str:
    """Why a row failed, in a few words: its first error, or what happened where no error is named."""
    facts = dict(line.strip().partition(": ")[::2] for line in failed.lines)
    error = facts.get("first error", "")
    return error if error and error != "none is named" else facts.get("what happened", failed.lines[0])


def as_text(folder: Path) -> str:
    """The table of a written report with aligned columns, best values with a ``*``, and the page's path."""
    source, page = folder / "table.md", folder / "index.html"
    for path in (source, page):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file: write the report first")
    rows: list[list[str]] = []
    for line in source.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|") and rows:
            break  # tables of attacks and requests follow
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            cells = [re.sub(r"^\*\*(.*?)\*\*", r"\1*", cell) for cell in cells]
            rows.append([re.sub(r"\\(.)", r"\1", cell) for cell in cells])
    if len(rows) < 3:
        raise ValueError(f"{source}: holds no table")
    del rows[1]
    # Titles are broken at spaces to keep to the width of what stands below them.
    titles, body = rows[0], rows[1:]
    widths = [max(*map(len, titles[i].split()), *(len(row[i]) for row in body)) for i in range(len(titles))]
    broken = [textwrap.wrap(title, width, break_on_hyphens=False) for title, width in zip(titles, widths, strict=True)]
    height = max(map(len, broken))
    head = list(zip(*([""] * (height - len(parts)) + parts for parts in broken), strict=True))
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(widths[i]) if i in (0, last) else cell.rjust(widths[i]) for i, cell in enumerate(row)
        ).rstrip()
        for row in [*head, ["-" * width for width in widths], *body]
    ]
    return printable(
        "\n".join([*lines, "", "* best of its column: the report says among which models", f"report: {page}"])
    )


def _candidate(metric: Metric, group: Group) -> bool:
    whole = len(group.values(metric.key)) == len(group.results)
    return metric.better is not None and group.kind == "unlearned" and group.sound and whole


def _best(metric: Metric, groups: Sequence[Group], whole: bool) -> set[str]:
    """How the best mean reads, in every form where several are equally good (0.9 and 1.1 are as close to 1)."""
    means = [mean for group in groups if _candidate(metric, group) and (mean := group.mean(metric.key)) is not None]
    least = min((badness(metric, mean) for mean in means), default=0.0)
    return {formatted(metric, mean, whole) for mean in means if badness(metric, mean) == least}


def badness(metric: Metric, value: float) -> float:
    """A number that is lower the better a value of the metric is."""
    if metric.better == "higher":
        return -value
    if metric.better == "one":
        return abs(value - 1)
    return abs(value) if metric.better == "zero" else value


def _beside(spec: ReportSpec, metric: Metric, group: Group, published: float, whole: bool) -> str:
    """A published number, and how much larger ours is than it, where it is of the same model."""
    mean, text = group.mean(metric.key), formatted(metric, published, whole)
    if mean is None or spec.published_of is not None:
        return text
    difference = formatted(metric, mean - published, whole)
    return f"{text}, Δ {'' if difference.startswith('-') else '+'}{difference}".replace("Δ -", "Δ −")


def _texts(metric: Metric, group: Group, whole: bool) -> tuple[str, str]:
    values, seeds = group.values(metric.key), len(group.results)
    if not values:
        return NONE, ""
    spread = f"± {formatted(metric, statistics.stdev(values), whole)}" if len(values) > 1 else ""
    if len(values) < seeds:
        spread = f"{spread} ({len(values)} of {seeds} seeds)".strip()
    return formatted(metric, statistics.fmean(values), whole), spread


def are_counts(values: Sequence[float]) -> bool:
    """Whether the values of a metric are whole numbers, and not only 0 and 1: they are then shown without decimals."""
    return all(value.is_integer() for value in values) and any(value > 1 for value in values)


def formatted(metric: Metric, value: float, whole: bool) -> str:
    """A value as tables show it; ``whole``: without decimals (``are_counts``)."""
    if metric.key.startswith("forget_quality"):
        return f"{value:.2e}"
    if metric.key.startswith("privleak"):  # in percent
        return f"{value:.1f}"
    if whole:
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
    if abs(value) >= 1e6:  # the perplexity of a model that has collapsed
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def escape(text: str) -> str:
    clean = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", clean)


def as_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
