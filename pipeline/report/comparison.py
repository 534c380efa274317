"""Two finished experiments side by side: what differs in configuration, data, versions and metrics."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.benchmarks.records import EVALUATION, EvaluationRecord
from pipeline.data.json_files import read_object
from pipeline.report import finished, read
from pipeline.report.flat import flat
from pipeline.report.read import Group
from pipeline.specs import ReportSpec

ROUNDING = 1e-12  # of a value; seeds that differ by less tell nothing of how far seeds lie apart
VERSIONS = ("git", "packages", "python", "image", "host.machine")
Values = Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """A metric of one row of the report that is not the same in both.

    Attributes:
        model: the row
        metric: the metric's key
        first: its values over seeds in the first results; ``None`` for a seed without one
        second: and in the second
        p: of Welch's two-sided t-test, by Holm's method for all tests together; ``None`` where there is no test
    """

    model: str
    metric: str
    first: tuple[float | None, ...]
    second: tuple[float | None, ...]
    p: float | None = None


@dataclass(frozen=True)
class Results:
    """What is compared of an experiment: its configuration, data by SHA-256, versions, and rows with their seeds."""

    config: Values
    data: Values
    versions: Values
    rows: Mapping[str, Group]


def load(folder: Path) -> Results:
    """A finished experiment's results; the folder may have been moved.

    Raises:
        DataError: there is no report, or a file is not what a step writes
    """
    spec = finished.specification(folder)
    groups = [*read.load(spec), *read.attacked(spec), *read.later_requests(spec), *read.by_epoch(spec)]
    data = EvaluationRecord.read(spec.entries[0].evaluation / EVALUATION).settings.data_sha256
    rows = {_name(group): group for group in groups}
    rows |= {f"{_name(group)}, further seeds": group for group in read.repeats(spec)}
    return Results(flat(spec.config), data, _versions(spec), rows)


def _versions(spec: ReportSpec) -> dict[str, str]:
    """The versions that models were made and evaluated with: of each key every value that some step has recorded."""
    found: dict[str, dict[str, None]] = {}
    for entry in (*spec.entries, *spec.attacked, *spec.later_requests, *spec.by_epoch, *spec.repeats):
        for folder in (entry.run, entry.evaluation):
            record = folder / "provenance.json" if folder else None
            for key, value in flat(read_object(record)).items() if record and record.is_file() else ():
                if key.startswith(VERSIONS):
                    found.setdefault(key, {})[value] = None
    return {key: ", ".join(values) for key, values in found.items()}


def differing(first: Values, second: Values) -> list[tuple[str, str | None, str | None]]:
    """Key and both values of what is not the same; ``None`` where one has no such key."""
    keys = dict.fromkeys([*first, *second])
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def metrics(first: Results, second: Results) -> list[Difference]:
    """The metrics of rows that both have, of which some value differs."""
    found = list(_differences(first.rows, second.rows))
    tested = {place: p for place, one in enumerate(found) if (p := _welch(one.first, one.second)) is not None}
    adjusted = holm(list(tested.values()))
    for place, p in zip(tested, adjusted, strict=True):
        found[place] = replace(found[place], p=p)
    return found


def holm(values: Sequence[float]) -> list[float]:
    """p-values for all tests together, by Holm's step-down method.

    Args:
        values: the p-value of each test by itself

    Returns:
        the adjusted p-values, in the same order

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def _differences(first: Mapping[str, Group], second: Mapping[str, Group]) -> Iterator[Difference]:
    for name in first:
        if name not in second:
            continue
        keys = dict.fromkeys(
            key for group in (first[name], second[name]) for one in group.results for key in one.metrics
        )
        for key in keys:
            values = _by_seed(first[name], key), _by_seed(second[name], key)
            if values[0] != values[1]:
                yield Difference(name, key, *values)


def _by_seed(group: Group, key: str) -> tuple[float | None, ...]:
    found = [one.metrics.get(key) for one in group.results]
    return tuple(value if value is not None and math.isfinite(value) else None for value in found)


def _welch(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The p-value; ``None`` with fewer than two seeds on a side, where no seed differs from another by more than
    rounding, or where a number has no square (a perplexity of a collapsed model)."""
    first, second = ([value for value in side if value is not None] for side in (ours, theirs))
    if min(len(first), len(second)) < 2 or not (_varies(first) or _varies(second)):
        return None
    if max(map(abs, (*first, *second))) > math.sqrt(sys.float_info.max):
        return None
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():  # of one side without any spread, which the test allows
        warnings.simplefilter("ignore", RuntimeWarning)
        p = float(ttest_ind(first, second, equal_var=False).pvalue)
    return p if math.isfinite(p) else None


def _varies(values: Sequence[float]) -> bool:
    return max(values) - min(values) > ROUNDING * max(map(abs, values))


def _name(group: Group) -> str:
    parts = [group.method, group.variant]
    after = [f"after {group.attack}"] if group.attack else []
    after += [f"request {group.request}"] if group.request > 1 else []
    after += [f"epoch {group.epoch}"] if group.epoch else []
    return ", ".join(["-".join(filter(None, parts)), *after])
