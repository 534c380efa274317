"""What the metrics themselves are worth: how well each tells models that knew from models that never did.

Source: OpenUnlearning (arXiv 2506.12618), whose faithfulness is the area under the ROC curve of a metric over models
trained with and without the knowledge, and whose robustness asks the same after relearning and quantisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.benchmarks.base import Metric
from pipeline.report.read import Group
from pipeline.report.tables import NONE, as_line, escape
from pipeline.specs import ReportSpec


@dataclass(frozen=True)
class Row:
    """``cells``: the metric's AUC as the models are, and after each attack."""

    metric: Metric
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """``models``: how many were trained with what is to be forgotten, and how many without it."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    models: tuple[int, int]

    @property
    def legend(self) -> str:
        return (
            f"AUC of each metric over {self.models[0]} models that were trained with what is to be forgotten and "
            f"{self.models[1]} that never saw it: how often one of the first has the higher value, ties counted half. "
            "1 and 0: told apart always, and which side is higher; 0.5: not at all. Behind the first column, every "
            "model of both kinds has been attacked in the same way."
        )


def table(spec: ReportSpec, groups: Sequence[Group], metrics: Sequence[Metric]) -> Table | None:
    """The table; ``None`` where there are no repetitions of target and retrain.

    Args:
        spec: what to report, the attacks among it
        groups: the rows, those after attacks, and the repetitions
        metrics: the catalogue; of it those that are about what should be forgotten
    """
    if not spec.repeats:
        return None
    states = (None, *(attack.name for attack in spec.attacks))
    rows = []
    for metric in metrics:
        areas = [auc(*(_values(groups, kind, state, metric.key) for kind in ("target", "retrain"))) for state in states]
        if metric.evidence is not None and any(area is not None for area in areas):
            rows.append(Row(metric, tuple(NONE if area is None else f"{area:.3f}" for area in areas)))
    known, unknown = (
        sum(len(group.results) for group in groups if (group.kind, group.attack) == (kind, None))
        for kind in ("target", "retrain")
    )
    return Table(("As trained", *(f"After {state}" for state in states[1:])), tuple(rows), (known, unknown))


def auc(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The share of pairs in which a value of ``first`` is the higher one, ties counted half; ``None`` without pairs."""
    pairs = [(a, b) for a in first for b in second]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs) if pairs else None


def as_markdown(found: Table | None) -> str:
    """The table under a heading; empty where there is none."""
    if found is None:
        return ""
    lines = [as_line(escape(title) for title in ("Metric", *found.columns))]
    lines.append(as_line(["---", *["---:"] * len(found.columns)]))
    lines += [as_line([escape(row.metric.title), *row.cells]) for row in found.rows]
    return "\n".join(["## What the metrics tell apart", "", escape(found.legend), "", *lines, ""])


def _values(groups: Sequence[Group], kind: str, attack: str | None, key: str) -> list[float]:
    """The metric's finite values of all models of a kind after an attack."""
    there = [group for group in groups if (group.kind, group.attack) == (kind, attack)]
    return [value for group in there for value in group.values(key)]
