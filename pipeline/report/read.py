"""What a report is made of, read from the steps' folders and checked."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.benchmarks.base import SCHEMA
from pipeline.judging.rubric import SCHEMA as JUDGEMENT
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
# In which kinds of step run.
ORDER = ("data", "base", "train", "reference", "unlearn", "relearn", "quantise", "evaluate", "judge")
TRAJECTORY_KEYS = ("forget_probability", "retain_probability", "score")
STATE = "rule_state."  # begins the columns of a rule's own numbers
DIGITS = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True)
class StepTiming:
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
class Trajectory:
    """What validation measured during unlearning (columns of equal length), and the step whose weights were written."""

    columns: Mapping[str, Sequence[float]]
    select: str
    selected: int


@dataclass(frozen=True)
class Result:
    """One model: its metrics and, where it was unlearned here, its step log (columns of equal length, NaN for null).

    ``judge``: the language model that judged its answers; what it found is among the metrics.
    ``reasons``: the evaluation's sentences on why the model must be taken for collapsed. ``said``: the step log's
    notes, those that differ in figures only as one.
    """

    entry: ReportEntry
    metrics: Mapping[str, float | None]
    flags: frozenset[str]
    reasons: tuple[str, ...]
    steps: Mapping[str, Sequence[float]] | None
    said: tuple[Note, ...]
    stages: tuple[StepTiming, ...]
    provenance: Mapping[str, Mapping[str, Any]]
    judge: str | None = None
    trajectory: Trajectory | None = None


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
    def attack(self) -> str | None:
        return self.results[0].entry.attack

    @property
    def request(self) -> int:
        """Which request to forget it was asked last, from 1."""
        return self.results[0].entry.request or 1

    @property
    def title(self) -> str:
        title = self.results[0].entry.title
        return title if not self.variant or self.variant in title else f"{title} ({self.variant})"

    @property
    def runs(self) -> list[Mapping[str, Sequence[float]]]:
        """Step logs of the seeds that have one."""
        return [result.steps for result in self.results if result.steps is not None]

    @property
    def trajectories(self) -> list[Trajectory]:
        """Of the seeds that have one."""
        return [result.trajectory for result in self.results if result.trajectory is not None]

    def values(self, key: str) -> list[float]:
        """The finite values of a metric, a seed an item."""
        found = [result.metrics.get(key) for result in self.results]
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def notes(self) -> list[str]:
        """Flags of the seeds, with how many seeds have each where not all do; which step's weights were chosen, where
        they were; how many answers of all seeds are empty or repeat themselves; then what their step logs note."""
        n = len(self.results)
        counts = Counter(flag for result in self.results for flag in result.flags)
        flags = [flag if count == n else f"{flag} ({count} of {n} seeds)" for flag, count in sorted(counts.items())]
        steps = sum(len(run["step"]) for run in self.runs)
        said = Counter(
            about for result in self.results for note in result.said for about in [note.about] * len(note.steps)
        )
        chosen = [str(found.selected) for found in self.trajectories if found.select != "last"]
        if chosen:
            flags.append(f"selected step{'s' * (len(chosen) > 1)} {', '.join(chosen)}")
        for kind in ("empty", "repetitive"):
            bad = sum(int(result.metrics.get(f"{kind}_generations") or 0) for result in self.results)
            if bad:
                flags.append(f"{bad} {kind} answer{'s' * (bad > 1)}")
        return flags + [f"step log: {about} ({count} of {steps} steps)" for about, count in sorted(said.items())]

    @property
    def sound(self) -> bool:
        """Whether no seed collapsed or stayed as it was: only then can a value of the row count as best."""
        return not any(result.flags & {"collapsed", "unchanged"} for result in self.results)


def load(spec: ReportSpec) -> list[Group]:
    """Every entry's files, grouped over seeds: target, retrain, then methods in the order of the specification.

    Raises ``FileNotFoundError`` or ``ValueError`` that names the file and the key.
    """
    return _groups(spec, spec.entries)


def attacked(spec: ReportSpec) -> list[Group]:
    """As ``load``, what became of the entries' models, a group for each attack."""
    return _groups(spec, spec.attacked)


def later_requests(spec: ReportSpec) -> list[Group]:
    """As ``load``, the models after each further request to forget."""
    return _groups(spec, spec.later_requests)


def _groups(spec: ReportSpec, entries: Sequence[ReportEntry]) -> list[Group]:
    groups: dict[tuple[str | int | None, ...], list[Result]] = {}
    for entry in sorted(entries, key=lambda entry: KINDS.index(entry.kind)):
        key = (entry.kind, entry.method, entry.variant, entry.attack, entry.request)
        groups.setdefault(key, []).append(_result(spec, entry))
    return [Group(tuple(found)) for found in groups.values()]


def judges(groups: Sequence[Group]) -> list[str]:
    """The language models that judged answers, sorted."""
    return sorted({result.judge for group in groups for result in group.results if result.judge is not None})


def stages(spec: ReportSpec, groups: Sequence[Group]) -> list[StepTiming]:
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
    evaluation, metrics = _measured(spec, entry, path, SCHEMA)
    times = [_stage(entry.evaluation / "summary.json", entry.model_id, "evaluate")]
    provenance = {"evaluate": _get(path, evaluation, "provenance", dict)}
    # A step that was started by hand, not by the launcher, has no record of its own.
    if (entry.evaluation / "provenance.json").is_file():
        provenance["evaluate"] |= read_object(entry.evaluation / "provenance.json")
    steps, said, trajectory = None, (), None
    if entry.run is not None:
        record = read_object(entry.run / "provenance.json")
        step = str(record.get("step", "unlearn" if entry.kind == "unlearned" else "train"))
        if entry.attack is not None:
            step = next((attack.kind for attack in spec.attacks if attack.name == entry.attack), step)
        times.insert(0, _stage(entry.run / "summary.json", entry.model_id, step))
        provenance = {step: record, **provenance}
        if entry.kind == "unlearned" and entry.attack is None:
            steps, said = _steps(entry.run / "steps.jsonl")
            trajectory = _trajectory(entry.run)
    judge = None
    if entry.judgement is not None:
        path = entry.judgement / "judgement.json"
        judgement, judged = _measured(spec, entry, path, JUDGEMENT)
        judge = str(_get(path, _get(path, judgement, "settings", dict), "model"))
        metrics |= judged
        times.append(_stage(entry.judgement / "summary.json", entry.model_id, "judge"))
        record = {key: _get(path, judgement, key, dict) for key in ("rubric", "counts")}
        if (entry.judgement / "provenance.json").is_file():
            record |= read_object(entry.judgement / "provenance.json")
        provenance["judge"] = record
    flags = frozenset(flag for time in times for flag in time.flags)
    summary = entry.evaluation / "summary.json"
    reasons = _texts(summary, {"collapsed_because": [], **read_object(summary)}, "collapsed_because")
    return Result(entry, metrics, flags, reasons, steps, said, tuple(times), provenance, judge, trajectory)


def _measured(
    spec: ReportSpec, entry: ReportEntry, path: Path, schema: int
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """What a file with metrics of the entry's model holds, and the metrics."""
    values = read_object(path)
    wanted = {"schema": schema, "model": entry.model_id, "benchmark": spec.benchmark, "split": spec.split}
    for key, value in wanted.items():
        if _get(path, values, key) != value:
            raise ValueError(f"{path}: {key!r} is {_short(values[key])}, the report's specification says {value!r}")
    found = _get(path, values, "metrics", dict)
    return values, {key: _number(path, found, key, "metrics.") for key in found}


def _stage(path: Path, name: str, step: str) -> StepTiming:
    summary = read_object(path)
    seconds = [_number(path, summary, f"{part}_seconds", null=False) for part in ("startup", "work", "write")]
    return StepTiming(name, step, *seconds, _texts(path, summary, "flags"))


def _steps(path: Path) -> tuple[dict[str, list[float]], tuple[Note, ...]]:
    columns: dict[str, list[float]] = {key: [] for key in ("step", *STEP_KEYS)}
    said: dict[str, tuple[str, list[int]]] = {}
    for number, (where, row) in enumerate(_lines(path), 1):
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
    if not columns["step"]:
        raise ValueError(f"{path}: holds no step")
    return columns, tuple(Note(text, tuple(steps)) for text, steps in said.values())


def _trajectory(run: Path) -> Trajectory | None:
    """What validation measured in a run; None where it was off, and the file is empty."""
    path, summary = run / "trajectory.jsonl", run / "summary.json"
    keys = ("step", *TRAJECTORY_KEYS)
    rows = [[_number(where, row, key, null=False) for key in keys] for where, row in _lines(path)]
    if not rows:
        return None
    found = read_object(summary)
    columns = dict(zip(keys, zip(*rows, strict=True), strict=True))
    select, step = _get(summary, found, "select"), _number(summary, found, "selected_step", null=False)
    if step not in columns["step"]:
        raise ValueError(f"{summary}: 'selected_step' is {step:g}, a step that {path} does not have")
    return Trajectory(columns, str(select), int(step))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in a file of JSON lines, each with its place for messages."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: must hold an object, holds {_short(row)}")
        yield where, row


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
