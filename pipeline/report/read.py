"""The models of a report: read from the steps' folders, checked, and grouped over seeds."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.benchmarks.records import EVALUATION, EvaluationRecord
from pipeline.data.json_files import agree, read_object
from pipeline.judging.records import JUDGEMENT, JudgementRecord
from pipeline.report import utility
from pipeline.report.logs import Note, StepTiming, Trajectory, loss_log, step_log, texts, timing, trajectory
from pipeline.specs import ReportEntry, ReportSpec

KINDS = ("target", "retrain", "unlearned")
# In which kinds of step run.
BEFORE = ("own_answers", "data", "base", "train", "alternatives", "reference")
ORDER = (*BEFORE, "unlearn", "relearn", "quantise", "evaluate", "judge")


@dataclass(frozen=True)
class Result:
    """One model of the report.

    Attributes:
        entry: what the specification says of it
        metrics: values by key, those of the judge among them; null where there is no value
        flags: what its steps flagged
        reasons: why the evaluation takes the model for collapsed, a sentence each
        steps: columns of the step log where the model was unlearned here, of equal length, NaN for null
        log_notes: notes of the step log
        timings: times of the steps that made, evaluated and judged it
        provenance: by step, the records of where things came from
        judge: the language model that judged its answers
        trajectory: what validation measured during unlearning
        losses: of an attack that trains, the columns ``step`` and ``loss`` of its step log
    """

    entry: ReportEntry
    metrics: Mapping[str, float | None]
    flags: frozenset[str]
    reasons: tuple[str, ...]
    steps: Mapping[str, Sequence[float]] | None
    log_notes: tuple[Note, ...]
    timings: tuple[StepTiming, ...]
    provenance: Mapping[str, Mapping[str, Any]]
    judge: str | None = None
    trajectory: Trajectory | None = None
    losses: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True)
class Group:
    """The seeds of one row of the table.

    Attributes:
        results: what was measured of each
        choice: of the point of a sweep that was chosen, how
    """

    results: tuple[Result, ...]
    choice: str | None = None

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
    def swept(self) -> str | None:
        """Of a sweep, the method that was swept."""
        return self.results[0].entry.swept

    @property
    def point(self) -> Mapping[str, bool | int | float | str | None]:
        """Of a sweep, the values of this row."""
        return self.results[0].entry.point

    @property
    def attack(self) -> str | None:
        return self.results[0].entry.attack

    @property
    def request(self) -> int:
        """Which request to forget it was asked last, from 1."""
        return self.results[0].entry.request or 1

    @property
    def epoch(self) -> int:
        """After which epoch it was saved; 0 for what no epoch is known of, such as target."""
        return self.results[0].entry.epoch or 0

    @property
    def title(self) -> str:
        title = self.results[0].entry.title
        said = self.variant is None or re.search(rf"(?<!\w){re.escape(self.variant)}(?!\w)", title)
        return title if said else f"{title} ({self.variant})"

    @property
    def title_with_request(self) -> str:
        """The title, and which request to forget it was asked last, where that is not the first."""
        return self.title + (f", request {self.request}" if self.request > 1 else "")

    @property
    def runs(self) -> list[Mapping[str, Sequence[float]]]:
        """Step logs of the seeds that have one."""
        return [result.steps for result in self.results if result.steps is not None]

    @property
    def trajectories(self) -> list[Trajectory]:
        """Of the seeds that have one."""
        return [result.trajectory for result in self.results if result.trajectory is not None]

    def values(self, key: str) -> list[float]:
        """The finite values of a metric over the seeds."""
        found = [result.metrics.get(key) for result in self.results]
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, key: str) -> float | None:
        """The mean of ``values``, or ``None`` where no seed has one."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def notes(self) -> list[str]:
        """What a reader should know of these models, a few words each.

        In this order: how it was chosen, of a sweep's best point; flags, with the number of seeds that have each where
        not all do; the step whose weights were chosen, where validation chose one; how many answers of all seeds are
        empty or repeat themselves; and what the step logs note, with the number of steps.
        """
        return [*filter(None, [self.choice]), *self._flags(), *self._bad_answers(), *self._log_notes()]

    def _flags(self) -> list[str]:
        n = len(self.results)
        counts = Counter(flag for result in self.results for flag in result.flags)
        flags = [flag if count == n else f"{flag} ({count} of {n} seeds)" for flag, count in sorted(counts.items())]
        chosen = [str(found.selected) for found in self.trajectories if found.select != "last"]
        if chosen:
            flags.append(f"selected step{'s' * (len(chosen) > 1)} {', '.join(chosen)}")
        return flags

    def _bad_answers(self) -> list[str]:
        found = []
        for kind in ("empty", "repetitive"):
            bad = sum(int(result.metrics.get(f"{kind}_generations") or 0) for result in self.results)
            if bad:
                found.append(f"{bad} {kind} answer{'s' * (bad > 1)}")
        return found

    def _log_notes(self) -> list[str]:
        steps = sum(len(run["step"]) for run in self.runs)
        counts: Counter[str] = Counter()
        for result in self.results:
            for note in result.log_notes:
                counts[note.about] += len(note.steps)
        return [f"step log: {about} ({count} of {steps} steps)" for about, count in sorted(counts.items())]

    @property
    def sound(self) -> bool:
        """Whether no seed collapsed, stayed as it was or is over its budget: only then can a value of the row count as
        best."""
        return not any(result.flags & {"collapsed", "unchanged", "over-budget"} for result in self.results)


def load(spec: ReportSpec) -> list[Group]:
    """Every entry's files, grouped over seeds: target, retrain, then methods in the order of the specification.

    Raises:
        OSError: a file is missing
        ValueError: a file is not what a step writes; the message names the file and the key
    """
    return _groups(spec, spec.entries)


def attacked(spec: ReportSpec) -> list[Group]:
    """As ``load``, for the entries' models after each attack."""
    return _groups(spec, spec.attacked)


def later_requests(spec: ReportSpec) -> list[Group]:
    """As ``load``, for the models after each further request to forget."""
    return _groups(spec, spec.later_requests)


def by_epoch(spec: ReportSpec) -> list[Group]:
    """As ``load``, for the models after each evaluated epoch."""
    return _groups(spec, spec.by_epoch)


def repeats(spec: ReportSpec) -> list[Group]:
    """As ``load``, for target and retrain of further seeds, before and after each attack."""
    return _groups(spec, spec.repeats)


def _groups(spec: ReportSpec, entries: Sequence[ReportEntry]) -> list[Group]:
    groups: dict[tuple[str | int | None, ...], list[Result]] = {}
    for entry in sorted(entries, key=lambda entry: KINDS.index(entry.kind)):
        key = (entry.kind, entry.method, entry.variant, entry.attack, entry.request, entry.epoch)
        groups.setdefault(key, []).append(_result(spec, entry))
    return [Group(tuple(found)) for found in groups.values()]


def judges(groups: Sequence[Group]) -> list[str]:
    """The language models that judged answers, sorted."""
    return sorted({result.judge for group in groups for result in group.results if result.judge is not None})


def timings(spec: ReportSpec, groups: Sequence[Group]) -> list[StepTiming]:
    """Times of every step that the report knows of, in the order in which they run."""
    found = [timing(folder / "summary.json", name, name.partition("/")[0]) for name, folder in spec.steps.items()]
    found += [one for group in groups for result in group.results for one in result.timings]
    return sorted(found, key=lambda one: ORDER.index(one.step) if one.step in ORDER else -1)


def _result(spec: ReportSpec, entry: ReportEntry) -> Result:
    path = entry.evaluation / EVALUATION
    evaluation = EvaluationRecord.read(path)
    _agrees(spec, entry, path, evaluation)
    metrics = _numbers({**evaluation.metrics, **utility.values(spec, entry)})
    times = [timing(entry.evaluation / "summary.json", entry.model_id, "evaluate")]
    provenance = {"evaluate": evaluation.provenance.model_dump(mode="json")}
    # A step that was started by hand, not by the launcher, has no record of its own.
    if (entry.evaluation / "provenance.json").is_file():
        provenance["evaluate"] |= read_object(entry.evaluation / "provenance.json")
    steps: Mapping[str, Sequence[float]] | None = None
    log_notes: tuple[Note, ...] = ()
    measured, losses = None, None
    if entry.run is not None:
        record = read_object(entry.run / "provenance.json")
        step = _kind(spec, entry, record)
        times.insert(0, timing(entry.run / "summary.json", entry.model_id, step))
        provenance = {step: record, **provenance}
        if step == "relearn" and (entry.run / "steps.jsonl").is_file():
            losses = loss_log(entry.run / "steps.jsonl")
        if entry.kind == "unlearned" and entry.attack is None:
            steps, log_notes = step_log(entry.run / "steps.jsonl")
            measured = trajectory(entry.run)
    judge = None
    if entry.judgement is not None:
        judge, judged, provenance["judge"] = _judged(spec, entry)
        metrics |= judged
        times.append(timing(entry.judgement / "summary.json", entry.model_id, "judge"))
    flags = frozenset(flag for time in times for flag in time.flags)
    asked = entry.utility.items()  # which say nothing of whether a model has collapsed: it may never have known
    times += [timing(folder / "summary.json", f"{entry.model_id}, {name}", "evaluate") for name, folder in asked]
    summary = entry.evaluation / "summary.json"
    reasons = texts(summary, {"collapsed_because": [], **read_object(summary)}, "collapsed_because")
    return Result(entry, metrics, flags, reasons, steps, log_notes, tuple(times), provenance, judge, measured, losses)


def _kind(spec: ReportSpec, entry: ReportEntry, record: Mapping[str, Any]) -> str:
    """The kind of step that made the entry's model: its attack's, or the one that the step's own record names."""
    kinds = {attack.name: attack.kind for attack in spec.attacks}
    if entry.attack in kinds:
        return kinds[entry.attack]
    return str(record.get("step", "unlearn" if entry.kind == "unlearned" else "train"))


def _judged(spec: ReportSpec, entry: ReportEntry) -> tuple[str, dict[str, float | None], dict[str, Any]]:
    """Of the entry's judgement: the judge's model, the metrics, and what belongs to the provenance."""
    assert entry.judgement is not None
    path = entry.judgement / JUDGEMENT
    record = JudgementRecord.read(path)
    _agrees(spec, entry, path, record)
    provenance = {"rubric": record.rubric, "counts": record.counts}
    if (entry.judgement / "provenance.json").is_file():
        provenance |= read_object(entry.judgement / "provenance.json")
    return record.judge, _numbers(record.metrics), provenance


def _agrees(spec: ReportSpec, entry: ReportEntry, path: Path, record: EvaluationRecord | JudgementRecord) -> None:
    wanted = {"model": entry.model_id, "benchmark": spec.benchmark, "split": spec.split}
    agree(path, record, wanted, "the report's specification says so")


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else float(value) for key, value in metrics.items()}
