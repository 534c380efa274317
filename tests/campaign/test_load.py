"""What the campaign of load looks for; ``python -m tests.campaign load`` has hundreds of jobs on a cluster."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.config.load import load as read
from pipeline.launch import lease
from pipeline.workflow.plan import Plan
from tests.campaign import kills, load

STEPS = ["data/tiny", "unlearned/npo/seed-0", "unlearned/npo/seed-1"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three finished steps, each started once."""
    for step in STEPS:
        (tmp_path / step).mkdir(parents=True)
        (tmp_path / step / load.DONE).touch()
        log = tmp_path / "logs" / ("data" if step.startswith("data/") else step)
        (log.parent / "attempts").mkdir(parents=True, exist_ok=True)
        (log.parent / "attempts" / f"{log.name}.1.log").touch()
    return tmp_path


def test_what_is_lost_done_twice_or_left_is_noticed(results: Path) -> None:
    """A campaign that finds nothing must be able to find something."""
    assert load.done(results, STEPS) == 3 and load.wrong(results, STEPS, 0) == []
    attempts = results / "logs/unlearned/npo/attempts"
    (attempts / "seed-1.2.log").touch()
    assert load.wrong(results, STEPS, 1) == []
    assert [problem for problem in load.wrong(results, STEPS, 0) if "seed-1" in problem]
    (attempts / "seed-1.3.log").touch()
    assert "unlearned/npo/seed-1 was started 3 times" in load.wrong(results, STEPS, 5)
    shutil.rmtree(attempts)
    (results / "data/tiny" / load.DONE).unlink()
    (results / "data/tiny" / lease.NAME).touch()
    (results / "unlearned/npo/seed-0/resume").mkdir()
    found = load.wrong(results, STEPS, 5)
    assert load.done(results, STEPS) == 2
    assert "data/tiny is not there" in found and "unlearned/npo/seed-0 was started 0 times" in found
    assert f"data/tiny/{lease.NAME} is left" in found and "unlearned/npo/seed-0/resume is left" in found


def test_a_run_that_ends_before_its_kill_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it printed, and with what is lost then: there is no report to read either."""

    def write(path: Path, content: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))

    monkeypatch.setattr(load, "start", lambda *_: (1, "no such partition", load.Used()))
    monkeypatch.setattr(load, "slurm_jobs", lambda *_: [])
    monkeypatch.setattr(load, "wait_for", lambda *_: None)
    problems = load._loaded(SimpleNamespace(folder=tmp_path / "clone", write=write), 72)  # type: ignore[arg-type]
    assert problems[0] == "ended before its kill, at 0 steps, with status 1: no such partition"
    assert "report is not there" in problems and problems[-1] == "there is no report"


def test_an_experiment_of_so_many_jobs(tmp_path: Path) -> None:
    """Of every method, so that seeds are what grows."""
    for folder, content in (("benchmarks/tiny.yaml", kills.BENCHMARK), ("experiments/load.yaml", load.experiment(300))):
        path = tmp_path / folder
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(content))
    plan = Plan(read(str(tmp_path / "experiments/load.yaml")), tmp_path)
    assert len(plan.config.experiment.seeds) == 5 and 300 <= len(plan.jobs) < 400
