"""Every shipped experiment as Snakemake would run it from nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.workflow.plan import Plan
from tests.support import programs

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(file.stem for file in (ROOT / "workflow_configs" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_dry_run_has_every_job_of_the_plan(tmp_path: Path, name: str) -> None:
    """Only this gives Snakemake the rules, resources and paths of each experiment; lint only reads and plans them."""
    options = ("--config", f"experiment={name}", f"results={tmp_path}")
    done = programs.snakemake(ROOT, "--dry-run", "--cores", "2", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {rule: int(count) for rule, count in re.findall(r"^([a-z_]+) +(\d+)$", done.stdout, re.MULTILINE)}
    planned = len(Plan(load(name), tmp_path).jobs)
    assert counts.pop("total") == sum(counts.values()) == planned + 1  # and `all`
    assert counts["write_report"] == 1
