"""The specification of a finished report, whose folder may have been moved since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ext.specs import read as read_spec
from pipeline.data.errors import DataError
from pipeline.specs import ReportEntry, ReportSpec


def specification(folder: Path) -> ReportSpec:
    """What the report of a finished experiment was made of; the experiment's folder may have been moved.

    Raises:
        DataError: there is no report in it
    """
    path = folder / "report" / "spec.yaml"
    if not path.is_file():
        raise DataError(f"{path}: is missing: name an experiment's folder of results that has a report")
    return _moved(read_spec(path, ReportSpec), folder)


def _moved(spec: ReportSpec, folder: Path) -> ReportSpec:
    """The specification with the folders below the experiment's own where they are now."""
    old = spec.output.parent

    def place(path: Path | None) -> Path | None:
        return folder / path.relative_to(old) if path is not None and path.is_relative_to(old) else path

    def entry(one: ReportEntry) -> ReportEntry:
        changed: dict[str, Any] = {key: place(getattr(one, key)) for key in ("evaluation", "run", "judgement")}
        changed["utility"] = {name: place(path) for name, path in one.utility.items()}
        return one.model_copy(update=changed)

    lists = ("entries", "attacked", "later_requests", "by_epoch", "repeats")
    rows = {key: [entry(one) for one in getattr(spec, key)] for key in lists}
    return spec.model_copy(update={**rows, "output": folder / "report"})
