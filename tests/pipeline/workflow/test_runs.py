"""The start of a run: what killed runs have left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.launch import lease
from pipeline.launch.environment import RUN
from pipeline.workflow import runs

SQUEUE = """#!/bin/sh
[ -f cancelled ] || echo "12 {names}_5f0c"
echo "13 unlearn-another_77aa"
echo "14 interactive"
"""


@pytest.mark.slow
def test_jobs_of_a_killed_run_are_cancelled_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm's jobs outlive the Snakemake that submitted them, and would write beside those of the next run."""
    names = runs.job_names(tmp_path / "results")
    for name, text in (("squeue", SQUEUE.format(names=names)), ("scancel", '#!/bin/sh\necho "$@" > cancelled\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN, "")
    held = runs.begin(tmp_path / "results", lambda: None)
    assert (tmp_path / "cancelled").read_text() == "12\n"
    held.release()
    assert os.environ[RUN] == str(tmp_path / "results") and not (tmp_path / "results" / lease.NAME).exists()
    assert "Slurm job 12" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    """Said before any job is submitted."""
    (tmp_path / "file").touch()
    with pytest.raises(lease.Held, match=r"results: '.*/file/mini' cannot be written: Not a directory"):
        runs.begin(tmp_path / "file" / "mini", lambda: None)
