"""The report of what succeeded, where jobs have failed: the other rows say why there is nothing of them.

It lies beside the experiment's own report, in ``report-partial``: for Snakemake, that one is still to be made.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.specs import FailedRow, ReportEntry, ReportSpec
from pipeline.workflow import failures
from pipeline.workflow.jobs import canonical
from pipeline.workflow.plan import Plan
from pipeline.workflow.report_job import files_of

FOLDER = "report-partial"


def write(plan: Plan, image: Path | None) -> Path | None:
    """Write that report and print its table.

    Args:
        plan: The experiment's jobs.
        image: What steps run in, where they do.

    Returns:
        Its page; ``None`` where nothing that a report shows has succeeded, or it could not be made.
    """
    spec = specification(plan, failures.noted())
    if spec is None:
        return None
    log = plan.paths.root / "logs" / f"{FOLDER}.log"
    command = [sys.executable, "-m", "pipeline.launch", str(spec.output / "spec.yaml"), "-", "--log", str(log)]
    command += ["--image", str(image)] if image else []
    if subprocess.run(command, input=canonical(spec).encode()).returncode:  # longer than an argument may be
        return None
    subprocess.run([sys.executable, "-m", "pipeline.report", "--print", str(spec.output)])
    return spec.output / "index.html"


def remove(plan: Plan) -> None:
    """Remove the report of an earlier run that lacks rows, now that there is one of everything."""
    shutil.rmtree(plan.paths.root / FOLDER, ignore_errors=True)


def specification(plan: Plan, failed: Mapping[Path, list[str]]) -> ReportSpec | None:
    """What that report is made of; ``None`` where no model is evaluated, or none is missing.

    Args:
        plan: The experiment's jobs.
        failed: The five lines of each job that failed, by the folder that it writes.
    """
    job = plan.jobs.get("report")
    if job is None or not isinstance(job.spec, ReportSpec):
        return None
    whole = job.spec
    ends = {entry.model_id for entry in whole.entries}  # in which runs that end in their last epoch are evaluated there
    saved = [entry for entry in whole.by_epoch if entry.model_id not in ends]
    rows = [*whole.entries, *whole.attacked, *whole.later_requests, *saved, *whole.repeats]
    there = {entry.model_id for entry in rows if all(path.exists() for path in files_of(entry))}
    entries = [entry for entry in whole.entries if entry.model_id in there]
    if not entries or len(there) == len(rows):
        return None
    later = [entry for entry in whole.later_requests if entry.model_id in there and _first(entry, entries)]
    shown = {entry.model_id for entry in (*entries, *later)}
    return whole.model_copy(
        update={
            "entries": entries,
            "attacked": [one for one in whole.attacked if one.model_id in there and _before(one) in shown],
            "later_requests": later,
            "repeats": [one for one in whole.repeats if one.model_id in there],
            "by_epoch": [one for one in whole.by_epoch if one.model_id in there and _first(one, entries)],
            "steps": {name: folder for name, folder in whole.steps.items() if (folder / "summary.json").exists()},
            "failed": [_row(plan, entry, failed) for entry in rows if entry.model_id not in there],
            "output": plan.paths.root / FOLDER,
        }
    )


def _before(entry: ReportEntry) -> str:
    """The model that was attacked."""
    return entry.model_id.removesuffix(f".{entry.attack}")


def _first(entry: ReportEntry, entries: list[ReportEntry]) -> bool:
    """Whether the same method and seed has a row of its own."""
    return any((one.method, one.variant, one.seed) == (entry.method, entry.variant, entry.seed) for one in entries)


def _row(plan: Plan, entry: ReportEntry, failed: Mapping[Path, list[str]]) -> FailedRow:
    """Why there is nothing of a model: its own failed job, or the one that a job of it waits for."""
    own = [
        folder
        for folder in (entry.run, entry.evaluation, entry.judgement, *entry.utility.values())
        if folder is not None
    ]
    makers = {job.spec.output for job in plan.jobs.values()}
    waiting, seen = list(own), set[Path]()
    while waiting:
        folder = waiting.pop(0)
        if folder.absolute() in failed:
            return FailedRow(model_id=entry.model_id, title=entry.title, lines=failed[folder.absolute()])
        seen.add(folder)
        job = next((job for job in plan.jobs.values() if job.spec.output == folder), None)
        needed = {parent for path in (job.inputs if job else ()) for parent in path.parents if parent in makers}
        waiting += [one for one in sorted(needed) if one not in seen]
    return FailedRow(model_id=entry.model_id, title=entry.title, lines=["not begun: the run ended before"])
