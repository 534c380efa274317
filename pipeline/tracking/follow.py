"""Follows the files that steps write: new lines of step logs, and evaluations that are complete."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_ext.atomic_files import write_json
from pipeline.data.errors import DataError
from pipeline.data.json_files import read_object

STATE = ".tracking.json"


class Tracker(Protocol):
    """Where numbers are logged."""

    def log(self, run: str, name: str, values: Mapping[str, float], step: int) -> None:
        """Log numbers of a run.

        Args:
            run: Its id, new for a run that starts again from other settings.
            name: What it is called.
            values: The numbers by key.
            step: The optimizer step that they belong to.
        """

    def close(self) -> None:
        """Write what is still held back."""


@dataclass
class Followed:
    """What is already logged of a run: its id, the lines of its step log, and the evaluations, by SHA-256."""

    run: str
    lines: int = 0
    step: int = 0
    evaluations: tuple[str, ...] = ()


class Follower:
    """Logs what is new below a folder of results; what it has logged is remembered there, over restarts."""

    def __init__(self, results: Path, tracker: Tracker, utility: Sequence[str] = ()) -> None:
        """Read what an earlier follower has logged.

        Args:
            results: An experiment's results.
            tracker: Where to log.
            utility: The experiment's further benchmarks, whose names go before their metrics' keys.
        """
        self.results, self.tracker, self.utility = results, tracker, utility
        known = read_object(results / STATE) if (results / STATE).is_file() else {}
        self.runs = {name: Followed(**{**of, "evaluations": tuple(of["evaluations"])}) for name, of in known.items()}

    def look(self) -> None:
        """Log what is new; what a step is just writing is left for the next look."""
        before = json.dumps(self._state())
        for name, folder in _runs(self.results):
            self._steps(name, folder)
        for path in sorted(self.results.glob("evaluation/*/*/evaluation.json")):
            self._evaluation(path)
        if json.dumps(self._state()) != before:
            write_json(self.results / STATE, self._state())

    def _state(self) -> dict[str, Any]:
        return {name: asdict(run) for name, run in self.runs.items()}

    def _steps(self, name: str, folder: Path) -> None:
        """A run that is told something else than before, or made again, starts again under another id. Its first line
        tells the two apart, which has the time that the step took; a run that goes on keeps it."""
        try:
            told = (folder / "spec.yaml").read_bytes()
            path = next(p for p in (folder / "steps.jsonl", folder / "resume" / "steps.jsonl") if p.is_file())
            if path.parent != folder and path.stat().st_mtime < (folder / "spec.yaml").stat().st_mtime:
                return  # of the run before, until this one has looked whether it goes on from there
            lines = path.read_bytes().split(b"\n")[:-1]
        except (OSError, StopIteration):
            return
        if not lines:
            return
        run = self.runs.get(name)
        new = f"{name}-{hashlib.sha256(told + lines[0]).hexdigest()[:8]}"
        if run is None or run.run != new:
            # What has been evaluated so far is the model before, until its new evaluation is there.
            run = self.runs[name] = Followed(new, evaluations=run.evaluations if run else ())
        for line in lines[run.lines :]:
            row = json.loads(line)
            values = numbers({key: value for key, value in row.items() if key != "step"})
            self.tracker.log(run.run, name, values, int(row["step"]))
            run.lines, run.step = run.lines + 1, int(row["step"])

    def _evaluation(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            record = read_object(path)
        except (OSError, DataError):
            return  # a step is replacing it
        digest = hashlib.sha256(data).hexdigest()
        name = str(record["model"])
        run = self.runs.setdefault(name, Followed(name))
        if digest not in run.evaluations:
            benchmark = path.parent.name
            before = f"evaluation/{benchmark}_" if benchmark in self.utility else "evaluation/"
            values = {f"{before}{key}": value for key, value in numbers(record["metrics"]).items()}
            self.tracker.log(run.run, name, values, run.step)
            run.evaluations = (*run.evaluations, digest)


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of an object, those of nested ones by dotted key."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{key}"] = float(value)
    return found


def _runs(results: Path) -> Iterator[tuple[str, Path]]:
    """Each run with a step log, by its model's id."""
    for folder in sorted(results.glob("models/*/")):
        yield folder.name, folder
    for folder in sorted(results.glob("unlearned/*/seed-*/")):
        yield f"{folder.parent.name}-{folder.name}", folder
    for folder in sorted(results.glob("robustness/*/*/")):
        yield f"{folder.parent.name}.{folder.name}", folder
