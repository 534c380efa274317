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


AWAY = "squeue: error: Unable to contact slurm controller (connect failure)"
FAILS = f"""#!/bin/sh
echo "{AWAY}" >&2
exit 1
"""
HANGS = """#!/bin/sh
exec sleep 20
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("AWAY", 0.3), ("AWAY_LOCALLY", 0.2), ("ASKED", 0.1), ("ANSWERED", 0.1)):
        monkeypatch.setattr(runs, name, seconds)


def squeue(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "squeue").write_text(text)
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(RUN, "")


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("text", "why"), [(FAILS, AWAY.replace("squeue: ", "")), (HANGS, "has not answered for 1 s")])
def test_a_controller_that_is_away_is_not_one_without_jobs(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squeue(text, tmp_path, monkeypatch)
    results = tmp_path / "results"
    with pytest.raises(lease.Held, match="which jobs a killed run may have left") as held:
        runs.begin(results, lambda: None, cluster=True)
    assert why in str(held.value) and not (results / lease.NAME).exists()
    runs.begin(results, lambda: None).release()
    said = capsys.readouterr().err
    assert why in said and "going on without" in said


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_controller_that_answers_again_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    once = f"{FAILS.removesuffix('exit 1' + chr(10))}[ -f asked ] || {{ touch asked; exit 1; }}\n"
    monkeypatch.setattr(runs, "AWAY", 20.0)
    squeue(once, tmp_path, monkeypatch)
    runs.begin(tmp_path / "results", lambda: None, cluster=True).release()
    assert "asking again which jobs" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    """Said before any job is submitted."""
    (tmp_path / "file").touch()
    with pytest.raises(lease.Held, match=r"results: '.*/file/mini' cannot be written: Not a directory"):
        runs.begin(tmp_path / "file" / "mini", lambda: None)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_jobs_that_a_late_controller_names_are_still_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which they may end begins when they are known, and not with the first question."""
    monkeypatch.setattr(runs, "AWAY", 20.0)
    monkeypatch.setattr(runs, "ENDING", 0.0)
    names = runs.job_names(tmp_path / "results")
    late = f"#!/bin/sh\n[ -f asked ] || {{ touch asked; exit 1; }}\n[ -f cancelled ] || echo '12 {names}_5f0c'\n"
    squeue(late, tmp_path, monkeypatch)
    (tmp_path / "scancel").write_text('#!/bin/sh\necho "$@" > cancelled\n')
    (tmp_path / "scancel").chmod(0o755)
    runs.begin(tmp_path / "results", lambda: None, cluster=True).release()
    assert (tmp_path / "cancelled").read_text() == "12\n"
