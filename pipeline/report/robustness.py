"""What attacks change: every model's metrics before and after, and what that says of the metrics themselves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.benchmarks.base import Metric
from pipeline.report.read import Group, Result
from pipeline.report.tables import ARROWS, NONE, are_counts, as_line, escape, formatted
from pipeline.specs import Attack, ModelId, ReportSpec

# Names of OpenUnlearning's ratios (arXiv 2506.12618), for metrics that are lower the less a model knows. Relearning
# compares how fast the unlearned model and retrain learn again; quantisation shows knowledge that was only hidden.
RATIOS = {"relearn": "relearn_ratio", "quantise": "quantisation_ratio"}
LEGEND = {
    "relearn": (
        "Before → after, and the difference. r, for metrics that are lower the less a model knows: what retrain gains, "
        "divided by what the unlearned model gains (OpenUnlearning, arXiv 2506.12618, where R = min(r, 1)). Near 1 or "
        "above: it learns again no faster than a model that never knew; near 0: it had not forgotten. Not given where "
        "either of the two gains nothing."
    ),
    "quantise": (
        "Before → after, and the difference. q, for metrics that are lower the less a model knows: the unlearned "
        "model's value before, divided by that after (OpenUnlearning, arXiv 2506.12618, where Q = min(q, 1)). Near 1 "
        "or above: rounding brings nothing back; near 0: it was only hidden. Not given where the value after is 0."
    ),
}
SYMBOLS = {"relearn": "r", "quantise": "q"}
Pair = tuple[Result, Result]  # of one seed: before and after


@dataclass(frozen=True)
class Change:
    """One metric of one model, as text: means over the seeds that have a value before and after, and the ratio."""

    before: str
    after: str
    difference: str
    ratio: str | None

    @property
    def text(self) -> str:
        if self.after == NONE:
            return NONE
        ratio = f", {self.ratio}" if self.ratio else ""
        return f"{self.before} → {self.after} ({self.difference}{ratio})"


@dataclass(frozen=True)
class Row:
    """``group``: the models after the attack."""

    group: Group
    cells: tuple[Change, ...]


@dataclass(frozen=True)
class Table:
    attack: Attack
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]

    @property
    def legend(self) -> str:
        return LEGEND[self.attack.kind]


def tables(
    spec: ReportSpec, groups: Sequence[Group], attacked: Sequence[Group], metrics: Sequence[Metric]
) -> list[Table]:
    """A table for each attack: rows are models, columns are the headline metrics that have a value.

    Args:
        spec: what to report, the attacks among it
        groups: the models as they were
        attacked: the models after each attack
        metrics: the metrics, in the order of columns
    """
    found = []
    for attack in spec.attacks:
        after = [group for group in attacked if group.attack == attack.name]
        headline = [m for m in metrics if m.headline and any(m.key in r.metrics for g in after for r in g.results)]
        columns = [_column(attack, metric, groups, after) for metric in headline]
        rows = [Row(group, tuple(column[i] for column in columns)) for i, group in enumerate(after)]
        found.append(Table(attack, tuple(headline), tuple(rows)))
    return found


def with_ratios(
    spec: ReportSpec, groups: Sequence[Group], attacked: Sequence[Group], metrics: Sequence[Metric]
) -> list[Group]:
    """``attacked``, with each model's ratios among its metrics as ``<metric>_relearn_ratio`` or
    ``<metric>_quantisation_ratio``; ``None`` where a ratio is not given."""
    kinds = {attack.name: attack for attack in spec.attacks}
    found = []
    for group in attacked:
        attack = kinds[str(group.attack)]
        retrain = _retrain(groups, [other for other in attacked if other.attack == group.attack])
        results = []
        for pair in _pairs(groups, group):
            own = {
                f"{metric.key}_{RATIOS[attack.kind]}": _ratio(attack, metric, group, [pair], retrain)
                for metric in metrics
                if metric.better == "lower" and group.kind == "unlearned" and metric.key in pair[1].metrics
            }
            results.append(replace(pair[1], metrics={**pair[1].metrics, **own}))
        found.append(Group(tuple(results)))
    return found


def as_markdown(found: Sequence[Table]) -> str:
    """The tables, each under a heading."""
    parts = []
    for table in found:
        titles = ["Model", *(f"{m.title} {ARROWS[m.better]}".strip() for m in table.metrics), "Notes"]
        lines = [as_line(escape(title) for title in titles), as_line(["---", *["---:"] * len(table.metrics), "---"])]
        for row in table.rows:
            cells = [escape(row.group.title_with_request), *(cell.text for cell in row.cells)]
            lines.append(as_line([*cells, escape(", ".join(row.group.notes()))]))
        about = escape(f"{table.attack.about}. {table.legend}")
        parts.append("\n".join([f"## Robustness: {escape(table.attack.name)}", "", about, "", *lines, ""]))
    return "\n".join(parts)


def _column(attack: Attack, metric: Metric, groups: Sequence[Group], after: Sequence[Group]) -> list[Change]:
    pairs, retrain = [_pairs(groups, group) for group in after], _retrain(groups, after)
    values = [value for found in pairs for pair in _values(metric, found) for value in pair]
    whole = are_counts(values)
    return [_change(attack, metric, group, found, retrain, whole) for group, found in zip(after, pairs, strict=True)]


def _change(
    attack: Attack, metric: Metric, group: Group, pairs: Sequence[Pair], retrain: Sequence[Pair], whole: bool
) -> Change:
    values = _values(metric, pairs)
    if not values:
        return Change(NONE, NONE, NONE, None)
    before, after = (statistics.fmean(column) for column in zip(*values, strict=True))
    ratio = _ratio(attack, metric, group, pairs, retrain)
    shown = None if ratio is None else f"{SYMBOLS[attack.kind]} = {ratio:.3g}"
    difference = formatted(metric, abs(after - before), whole)
    sign = "+" if after > before else "−"
    if not float(difference):
        sign = "±"  # of what reads as no difference
    return Change(formatted(metric, before, whole), formatted(metric, after, whole), f"{sign}{difference}", shown)


def _pairs(groups: Sequence[Group], attacked: Group) -> list[Pair]:
    """The seeds' models before and after."""
    known = {result.entry.model_id: result for group in groups for result in group.results}
    attacks = [attacked.attack] if attacked.attack else []
    return [(known[str(ModelId.parse(after.entry.model_id, attacks).before)], after) for after in attacked.results]


def _retrain(groups: Sequence[Group], after: Sequence[Group]) -> list[Pair]:
    return [pair for group in after if group.kind == "retrain" for pair in _pairs(groups, group)]


def _values(metric: Metric, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """The metric's value before and after, of the seeds that have both, finite."""
    values = [(before.metrics.get(metric.key), after.metrics.get(metric.key)) for before, after in pairs]
    both = [(before, after) for before, after in values if before is not None and after is not None]
    return [pair for pair in both if all(map(math.isfinite, pair))]


def _ratio(
    attack: Attack, metric: Metric, group: Group, pairs: Sequence[Pair], retrain: Sequence[Pair]
) -> float | None:
    if metric.better != "lower" or group.kind != "unlearned" or not _values(metric, pairs):
        return None
    before, after = (statistics.fmean(column) for column in zip(*_values(metric, pairs), strict=True))
    if attack.kind == "quantise":
        return before / after if after > 0 else None
    if not _values(metric, retrain):
        return None
    without, again = (statistics.fmean(column) for column in zip(*_values(metric, retrain), strict=True))
    return (again - without) / (after - before) if after > before and again > without else None
