"""Whether a run's steps are forked from a process that has loaded their libraries, see ``pipeline.launch.forked``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.launch import forked
from pipeline.workflow.plan import Plan


def prepare(plan: Plan, jobs: Iterable[Any]) -> None:
    """Start that process where several of Snakemake's ``jobs``, which run on this machine, can be forked from it."""
    folders = [Path(str(job.output.spec)).parent for job in jobs if hasattr(job.output, "spec")]
    steps = [plan.jobs[str(folder.relative_to(plan.paths.root))] for folder in folders]
    if sum(forked.suits(step.spec) for step in steps) > 1:
        forked.start_server()
