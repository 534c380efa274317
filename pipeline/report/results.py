"""What a report is made of, read from the steps' folders and checked."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.benchmarks.base import SCHEMA
from pipeline.specs import ReportEntry, ReportSpec

KINDS = ("target", "retrain", "unlearned")
STEP_KEYS = (
    "forget_loss",
    "retain_loss",
    "forget_grad_norm",
    "retain_grad_norm",
    "grad_cosine",
    "forget_alignment",
    "retain_alignment",
    "update_norm",
    "retain_nll",
    "dual",
)
ORDER = ("data", "base", "train", "reference", "unlearn", "evaluate")  # in which kinds of step run
STATE = "rule_state."  # begins the columns of a rule's own numbers
DIGITS = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True)
class Stage:
    """Seconds of one step: before its work (imports, process groups, loading), its work, and writing its output."""

    name: str
    step: str
    startup: float
    work: float
    write: float
    flags: tuple[str, ...]

    @property
    def total(self) -> float:
        return self.startup + self.work + self.write


@dataclass(frozen=True)
class Note:
    """A note of a step log: as it read first, what it is about (what stands before its colon), and at which steps."""

    text: str
    steps: tuple[int, ...]

    @property
    def about(self) -> str:
        return self.text.split(":", 1)[0]


@dataclass(frozen=True)
class Result:
    """One model: its metrics and, where it was unlearned here, its step log (columns of equal length, NaN for null).

    ``reasons``: the evaluation's sentences on why the model must be taken for collapsed. ``said``: the step log's
    notes, those that differ in figures only as one.
    """

    entry: ReportEntry
    metrics: Mapping[str, float | None]
    flags: frozenset[str]
    reasons: tuple[str, ...]
    steps: Mapping[str, Sequence[float]] | None
    said: tuple[Note, ...]
    stages: tuple[Stage, ...]
    provenance: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Group:
    """The seeds of one row of the table."""

    results: tuple[Result, ...]

    @property
    def kind(self) -> str:
        return self.results[0].entry.kind

    @property
    def method(self) -> str:
        return self.results[0].entry.method or self.kind

    @property
    def variant(self) -> str | None:
        return self.results[0].entry.variant

    @property
    def title(self) -> str:
        title = self.results[0].entry.title
        return title if not self.variant or self.variant in title else f"{title} ({self.variant})"

    @property
    def runs(self) -> list[Mapping[str, Sequence[float]]]:
        """Step logs of the seeds that have one."""
        return [result.steps for result in self.results if result.steps is not None]

    def values(self, key: str) -> list[float]:
        """The finite values of a metric, a seed an item."""
        found = [result.metrics.get(key) for result in self.results]
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def notes(self) -> list[str]:
        """Flags of the seeds, with how many seeds have each where not all do; then what their step logs note."""
        n = len(self.results)
        counts = Counter(flag for result in self.results for flag in result.flags)
        flags = [flag if count == n else f"{flag} ({count} of {n} seeds)" for flag, count in sorted(counts.items())]
        steps = sum(len(run["step"]) for run in self.runs)
        said = Counter(
            about for result in self.results for note in result.said for about in [note.about] * len(note.steps)
        )
        return flags + [f"step log: {about} ({count} of {steps} steps)" for about, count in sorted(said.items())]

    @property
    def sound(self) -> bool:
        """Whether no seed collapsed or stayed as it was: only then can a value of the row count as best."""
        return not any(result.flags & {"collapsed", "unchanged"} for result in self.results)


def load(spec: ReportSpec) -> list[Group]:
    """Every entry's files, grouped over seeds: target, retrain, then methods in the order of the specification.

    Raises ``FileNotFoundError`` or ``ValueError`` that names the file and the key.
    """
    groups: dict[tuple[str, str | None, str | None], list[Result]] = {}
    for entry in sorted(spec.entries, key=lambda entry: KINDS.index(entry.kind)):
        groups.setdefault((entry.kind, entry.method, entry.variant), []).append(_result(spec, entry))
    return [Group(tuple(found)) for found in groups.values()]


def stages(spec: ReportSpec, groups: Sequence[Group]) -> list[Stage]:
    """Times of every step that the report knows of, in the order in which they run."""
    found = [_stage(folder / "summary.json", name, name.partition("/")[0]) for name, folder in spec.steps.items()]
    found += [stage for group in groups for result in group.results for stage in result.stages]
    return sorted(found, key=lambda stage: ORDER.index(stage.step) if stage.step in ORDER else -1)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold an object, holds {_short(value)}")
    return value


def _result(spec: ReportSpec, entry: ReportEntry) -> Result:
    path = entry.evaluation / "evaluation.json"
    evaluation = read_object(path)
    wanted = {"schema": SCHEMA, "model": entry.model_id, "benchmark": spec.benchmark, "split": spec.split}
    for key, value in wanted.items():
        if _get(path, evaluation, key) != value:
            raise ValueError(f"{path}: {key!r} is {_short(evaluation[key])}, the report's specification says {value!r}")
    found = _get(path, evaluation, "metrics", dict)
    metrics = {key: _number(path, found, key, "metrics.") for key in found}
    times = [_stage(entry.evaluation / "summary.json", entry.model_id, "evaluate")]
    provenance = {"evaluate": _get(path, evaluation, "provenance", dict)}
    # A step that was started by hand, not by the launcher, has no record of its own.
    if (entry.evaluation / "provenance.json").is_file():
        provenance["evaluate"] |= read_object(entry.evaluation / "provenance.json")
    steps, said = None, ()
    if entry.run is not None:
        record = read_object(entry.run / "provenance.json")
        step = str(record.get("step", "unlearn" if entry.kind == "unlearned" else "train"))
        times.insert(0, _stage(entry.run / "summary.json", entry.model_id, step))
        provenance = {step: record, **provenance}
        if entry.kind == "unlearned":
            steps, said = _steps(entry.run / "steps.jsonl")
    flags = frozenset(flag for time in times for flag in time.flags)
    summary = entry.evaluation / "summary.json"
    reasons = _texts(summary, {"collapsed_because": [], **read_object(summary)}, "collapsed_because")
    return Result(entry, metrics, flags, reasons, steps, said, tuple(times), provenance)


def _stage(path: Path, name: str, step: str) -> Stage:
    summary = read_object(path)
    seconds = [_number(path, summary, f"{part}_seconds", null=False) for part in ("startup", "work", "write")]
    return Stage(name, step, *seconds, _texts(path, summary, "flags"))


def _steps(path: Path) -> tuple[dict[str, list[float]], tuple[Note, ...]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    columns: dict[str, list[float]] = {key: [] for key in ("step", *STEP_KEYS)}
    said: dict[str, tuple[str, list[int]]] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: must hold an object, holds {_short(row)}")
        state = _get(where, row, "rule_state")
        if not isinstance(state, dict | None):
            raise ValueError(f"{where}: 'rule_state' must be an object or null, is {_short(state)}")
        for key in state or {}:
            columns.setdefault(STATE + key, [math.nan] * (number - 1))
        for key, column in columns.items():
            own = key.startswith(STATE)
            holder, name = (state or {}, key.removeprefix(STATE)) if own else (row, key)
            value = None if own and name not in holder else _number(where, holder, name, STATE * own, key != "step")
            column.append(math.nan if value is None else value)
        note = _get(where, row, "note")
        if not isinstance(note, str | None):
            raise ValueError(f"{where}: 'note' must be a text or null, is {_short(note)}")
        for text in note.split("; ") if note else ():
            said.setdefault(DIGITS.sub("", text), (text, []))[1].append(int(columns["step"][-1]))
    if not lines:
        raise ValueError(f"{path}: holds no step")
    return columns, tuple(Note(text, tuple(steps)) for text, steps in said.values())


def _get(path: Path | str, found: Mapping[str, Any], key: str, kind: type | None = None) -> Any:
    if key not in found:
        raise ValueError(f"{path}: {key!r} is missing")
    if kind is not None and not isinstance(found[key], kind):
        names = {dict: "an object", list: "a list"}
        raise ValueError(f"{path}: {key!r} must be {names[kind]}, is {_short(found[key])}")
    return found[key]


def _texts(path: Path, found: Mapping[str, Any], key: str) -> tuple[str, ...]:
    texts = _get(path, found, key, list)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path}: {key!r} must be a list of texts, is {_short(texts)}")
    return tuple(texts)


def _number(path: Path | str, found: Mapping[str, Any], key: str, prefix: str = "", null: bool = True) -> Any:
    value = _get(path, found, key)
    if value is None and null:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        allowed = "a number or null" if null else "a number"
        raise ValueError(f"{path}: {prefix + key!r} must be {allowed}, is {_short(value)}")
    return float(value)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
