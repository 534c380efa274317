"""What unlearning left beside its checkpoint: times of the step, its step log, and what validation measured."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.json_files import numbered_rows, read_object, short

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
TRAJECTORY_KEYS = ("forget_probability", "retain_probability", "retain_greedy_match", "score")
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
    """A note of a step log: its text where it stands first, and the steps at which it stands."""

    text: str
    steps: tuple[int, ...]

    @property
    def about(self) -> str:
        """What the note is about: its text up to the first colon."""
        return self.text.split(":", 1)[0]


@dataclass(frozen=True)
class Trajectory:
    """What validation measured during unlearning (columns of equal length), and the step whose weights were written."""

    columns: Mapping[str, Sequence[float]]
    select: str
    selected: int


def timing(path: Path, name: str, step: str) -> StepTiming:
    """Times and flags of the step ``name`` from the ``summary.json`` at ``path``; ``step``: its kind."""
    summary = read_object(path)
    startup, work, write = (number(path, summary, f"{part}_seconds") for part in ("startup", "work", "write"))
    return StepTiming(name, step, startup, work, write, texts(path, summary, "flags"))


def step_log(path: Path) -> tuple[dict[str, list[float]], tuple[Note, ...]]:
    """The columns of a ``steps.jsonl``, of equal length with NaN for null, and its notes.

    Numbers of a rule's state are columns named ``rule_state.<name>``. Notes that differ only in numbers count as one.

    Raises:
        DataError: the file cannot be read, or a line lacks a key or has something else there
        ValueError: the same, naming file, line and key
    """
    columns: dict[str, list[float]] = {key: [] for key in ("step", *STEP_KEYS)}
    noted: dict[str, tuple[str, list[int]]] = {}
    for place, row in numbered_rows(path):
        state = _state(place, row)
        for key in state:
            columns.setdefault(key, [math.nan] * len(columns["step"]))
        columns["step"].append(number(place, row, "step"))
        for key in columns:
            if key.startswith(STATE):
                columns[key].append(state.get(key, math.nan))
            elif key != "step":
                columns[key].append(_nan_for_null(number_or_null(place, row, key)))
        note = entry(place, row, "note")
        if not isinstance(note, str | None):
            raise ValueError(f"{place}: 'note' must be a text or null, is {short(note)}")
        for text in note.split("; ") if note else ():
            noted.setdefault(DIGITS.sub("", text), (text, []))[1].append(int(columns["step"][-1]))
    if not columns["step"]:
        raise ValueError(f"{path}: holds no step")
    return columns, tuple(Note(text, tuple(steps)) for text, steps in noted.values())


def _state(place: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the rule's state in a line of the step log, by the names of their columns."""
    state = entry(place, row, "rule_state")
    if not isinstance(state, dict | None):
        raise ValueError(f"{place}: 'rule_state' must be an object or null, is {short(state)}")
    numbers = state or {}
    return {f"{STATE}{key}": _nan_for_null(number_or_null(place, numbers, key, STATE)) for key in numbers}


def loss_log(path: Path) -> dict[str, list[float]]:
    """The columns ``step`` and ``loss`` of a training's ``steps.jsonl``.

    Raises:
        DataError: the file cannot be read
        ValueError: a line lacks a number; the message names file, line and key
    """
    rows = [(number(place, row, "step"), number(place, row, "loss")) for place, row in numbered_rows(path)]
    return {"step": [step for step, _ in rows], "loss": [loss for _, loss in rows]}


def trajectory(run: Path) -> Trajectory | None:
    """What validation measured in the run in folder ``run``; ``None`` where it was off, and the file is empty."""
    path, summary = run / "trajectory.jsonl", run / "summary.json"
    keys = ("step", *TRAJECTORY_KEYS)
    rows = [[number(place, row, key) for key in keys] for place, row in numbered_rows(path)]
    if not rows:
        return None
    found = read_object(summary)
    columns = dict(zip(keys, zip(*rows, strict=True), strict=True))
    select, step = entry(summary, found, "select"), number(summary, found, "selected_step")
    if step not in columns["step"]:
        raise ValueError(f"{summary}: 'selected_step' is {step:g}, a step that {path} does not have")
    return Trajectory(columns, str(select), int(step))


def entry(place: Path | str, found: Mapping[str, Any], key: str) -> Any:
    """The value of a key; raises ``ValueError`` naming the place where it is missing."""
    if key not in found:
        raise ValueError(f"{place}: {key!r} is missing")
    return found[key]


def texts(place: Path | str, found: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts; raises ``ValueError`` naming place and key for anything else."""
    value = entry(place, found, key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{place}: {key!r} must be a list of texts, is {short(value)}")
    return tuple(value)


def number(place: Path | str, found: Mapping[str, Any], key: str) -> float:
    """A number; raises ``ValueError`` naming place and key for anything else."""
    value = entry(place, found, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place}: {key!r} must be a number, is {short(value)}")
    return float(value)


def number_or_null(place: Path | str, found: Mapping[str, Any], key: str, prefix: str = "") -> float | None:
    """A number or ``None``; ``prefix`` goes before the key in messages."""
    value = entry(place, found, key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place}: {prefix + key!r} must be a number or null, is {short(value)}")
    return float(value)


def _nan_for_null(value: float | None) -> float:
    return math.nan if value is None else value
