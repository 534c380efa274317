"""What each model cost: time, tokens a second, memory and disk, and the command that makes it once more."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.json_files import numbered_rows
from pipeline.report.read import Group, Result
from pipeline.report.tables import NONE
from pipeline.specs import ReportSpec


@dataclass(frozen=True)
class Cost:
    """What one unlearned model cost.

    Attributes:
        model: its id
        hours: of the step, of its evaluations on all ranks together, and of a judge, which is one process, in hours
        steps: optimizer steps
        rate: tokens a second of a step, the median, or a dash
        memory: the largest rank's peak, or a dash
        disk: bytes of the checkpoint, or why there are none
        command: what makes this row once more
    """

    model: str
    hours: str
    steps: str
    rate: str
    memory: str
    disk: str
    command: str


def of(spec: ReportSpec, groups: Sequence[Group]) -> list[Cost]:
    """The cost of every unlearned model.

    Args:
        spec: what to report
        groups: the rows
    """
    return [_cost(spec, one) for group in groups if group.kind == "unlearned" for one in group.results]


def _cost(spec: ReportSpec, result: Result) -> Cost:
    layout: dict[str, Any] = spec.config.get("layout") or {}
    ranks = layout.get("tensor", 1) * layout.get("pipeline", 1) * layout.get("data", 1)
    run = result.entry.run
    rows = [row for _, row in numbered_rows(run / "steps.jsonl")] if run else []
    rates = [row["tokens"] / row["seconds"] for row in rows if row.get("tokens") and row.get("seconds")]
    peaks = [row["peak_memory_bytes"] for row in rows if row.get("peak_memory_bytes")]
    seconds = sum(timing.total * (1 if timing.step == "judge" else ranks) for timing in result.timings)
    return Cost(
        model=result.entry.model_id,
        hours=f"{seconds / 3600:.3g}",
        steps=str(len(rows)),
        rate=f"{statistics.median(rates):,.0f}" if rates else NONE,
        memory=size(max(peaks)) if peaks else NONE,
        disk=_disk(run / "checkpoint") if run else NONE,
        command=command(spec, result),
    )


def _disk(folder: Path) -> str:
    if not folder.is_dir():
        return "removed"
    # The model card is the report's own.
    return size(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != "README.md"))


def size(number: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2)):
        if number >= 1024**power / 10:
            return f"{number / 1024**power:.3g} {unit}"
    return f"{number / 1024:.3g} KiB"


def command(spec: ReportSpec, result: Result) -> str:
    """What makes a row once more where its files are not there, from a clone."""
    # A list of one text: Snakemake would read a folder 2024_01 as a number.
    results = json.dumps([str(spec.output.parent.parent)], ensure_ascii=False)
    options = [f"experiment={spec.experiment}", f"results={results}"]
    settings = spec.config.get("set")
    options += [f"set={json.dumps(settings)}"] if settings else []
    target = str(result.entry.evaluation / "evaluation.json")
    profile = "workflow_configs/profiles/local"
    return shlex.join(["snakemake", "--profile", profile, target, "--config", *options])
