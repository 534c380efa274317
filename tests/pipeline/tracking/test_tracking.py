"""What is logged of a run, each thing once; the trackers themselves, where they are installed."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.tracking.beside import beside
from pipeline.tracking.follow import STATE, Follower
from pipeline.tracking.settings import TrackingSettings
from pipeline.tracking.trackers import tracker_of


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[str, str, dict[str, float], int]] = []

    def log(self, run: str, name: str, values: Mapping[str, float], step: int) -> None:
        self.logged.append((run, name, dict(values), step))

    def close(self) -> None: ...


def line(step: int, **values: object) -> str:
    return json.dumps({"step": step, "loss": float(step), **values}) + "\n"


FIRST = line(1, note=None, rule_state={"dual": 0.5}, flag=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is on its second step."""
    folder = tmp_path / "unlearned" / "npo" / "seed-0"
    (folder / "resume").mkdir(parents=True)
    (folder / "spec.yaml").write_text("first")
    text = FIRST + line(2)[:5]
    (folder / "resume" / "steps.jsonl").write_text(text)
    return folder


def test_each_line_and_evaluation_is_logged_once(tmp_path: Path, run: Path) -> None:
    """Only this follows a run: a line that is being written, a kill, the end, an evaluation, and other settings."""
    recorder = Recorder()
    Follower(tmp_path, recorder).look()
    ((first, name, values, step),) = recorder.logged
    assert (name, values, step) == ("npo-seed-0", {"loss": 1.0, "rule_state.dual": 0.5}, 1)

    follower = Follower(tmp_path, recorder, ["zoo"])  # as after a kill, with a further benchmark
    (run / "resume" / "steps.jsonl").rename(run / "steps.jsonl")
    (run / "steps.jsonl").write_text(FIRST + line(2))
    evaluation = tmp_path / "evaluation" / "npo-seed-0" / "mini" / "evaluation.json"
    evaluation.parent.mkdir(parents=True)
    evaluation.write_text(json.dumps({"model": "npo-seed-0", "metrics": {"forget_rouge": 0.25, "absent": None}}))
    (evaluation.parents[1] / "zoo").mkdir()
    further = {"model": "npo-seed-0", "metrics": {"forget_rouge": 0.5}}
    (evaluation.parents[1] / "zoo" / "evaluation.json").write_text(json.dumps(further))
    follower.look()
    follower.look()
    assert recorder.logged[1:] == [
        (first, "npo-seed-0", {"loss": 2.0}, 2),
        (first, "npo-seed-0", {"evaluation/forget_rouge": 0.25}, 2),
        (first, "npo-seed-0", {"evaluation/zoo_forget_rouge": 0.5}, 2),
    ]

    (run / "spec.yaml").write_text("second")
    Follower(tmp_path, recorder).look()
    assert [(run != first, values) for run, _, values, _ in recorder.logged[4:]] == [
        (True, {"loss": 1.0, "rule_state.dual": 0.5}),
        (True, {"loss": 2.0}),
    ], "what has been evaluated is the model before"
    assert json.loads((tmp_path / STATE).read_text())["npo-seed-0"]["lines"] == 2
    evaluation.write_text(json.dumps({"model": "npo-seed-0", "metrics": {"forget_rouge": 0.75}}))
    Follower(tmp_path, recorder).look()
    assert recorder.logged[-1][0] == recorder.logged[-2][0] != first
    assert recorder.logged[-1][2] == {"evaluation/forget_rouge": 0.75}


def test_a_killed_runs_log_is_not_that_of_the_next_with_other_settings(tmp_path: Path, run: Path) -> None:
    """While the next one loads its model, the log of the one before still lies there."""
    recorder, log = Recorder(), run / "resume" / "steps.jsonl"
    follower = Follower(tmp_path, recorder)
    follower.look()
    (run / "spec.yaml").write_text("second")
    os.utime(log, (1.0, 1.0))
    follower.look()
    assert len(recorder.logged) == 1
    log.write_text(line(1, seconds=9.0))
    follower.look()
    (first, *_), (second, _, values, _) = recorder.logged
    assert second != first and values == {"loss": 1.0, "seconds": 9.0}


def test_a_run_that_is_made_again_has_another_curve_and_an_attack_has_one(tmp_path: Path, run: Path) -> None:
    recorder = Recorder()
    for seconds in (1.0, 2.0):
        (run / "steps.jsonl").write_text(line(1, seconds=seconds))
        Follower(tmp_path, recorder).look()
    attack = tmp_path / "robustness" / "npo-seed-0" / "relearn"
    attack.mkdir(parents=True)
    (attack / "spec.yaml").write_text("attack")
    (attack / "steps.jsonl").write_text(line(1))
    Follower(tmp_path, recorder).look()
    assert len({entry[0] for entry in recorder.logged}) == 3
    assert [entry[1] for entry in recorder.logged] == ["npo-seed-0", "npo-seed-0", "npo-seed-0.relearn"]


def test_a_tracker_has_its_own_settings_alone() -> None:
    for values, said in (
        ({"kind": "wandb", "server": "http://host"}, "mlflow alone"),
        ({"kind": "mlflow", "server": "http://me:secret@host"}, "MLFLOW_TRACKING_USERNAME"),
        ({"kind": "trackio", "offline": True}, "wandb alone"),
    ):
        with pytest.raises(ValidationError, match=said):
            TrackingSettings.model_validate(values)


@pytest.mark.slow
def test_a_tracker_that_fails_is_said_and_harms_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only this runs the process beside a run: its folder is a file, so that it ends with an error."""
    (tmp_path / "tracking").write_text("")
    done = []
    with beside(TrackingSettings(kind="tensorboard"), tmp_path):
        done.append("the run")
    assert done == ["the run"]
    assert "tensorboard failed, the run did not" in capsys.readouterr().err
    assert "FileExistsError" in (tmp_path / "logs" / "tracking.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_tracker_keeps_what_is_logged(tmp_path: Path, run: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this uses the trackers' own packages, each without a connection."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "tracking"))  # which trackio reads when it is imported
    pytest.importorskip(kind)
    settings = TrackingSettings.model_validate({"kind": kind, "offline": kind == "wandb"})
    tracker = tracker_of(settings, "trial", tmp_path / "tracking")
    Follower(tmp_path, tracker).look()
    tracker.close()
    assert _first_loss(kind, tmp_path / "tracking") == 1.0


def _first_loss(kind: str, folder: Path) -> float:
    """The loss of the first step, as the tracker's own package, or its file, has it."""
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (events,) = folder.iterdir()
        return EventAccumulator(str(events)).Reload().Scalars("loss")[0].value
    if kind == "mlflow":
        from mlflow.tracking import MlflowClient

        client = MlflowClient(folder.as_uri())
        (found,) = client.search_runs([client.get_experiment_by_name("unlearning").experiment_id])
        return client.get_metric_history(found.info.run_id, "loss")[0].value
    if kind == "wandb":
        (written,) = folder.glob("wandb/offline-run-*/*.wandb")
        ends = time.monotonic() + 30  # wandb's own process writes it when it ends
        while b"rule_state.dual" not in written.read_bytes() and time.monotonic() < ends:
            time.sleep(0.1)
        return 1.0 if b"rule_state.dual" in written.read_bytes() else 0.0
    (database,) = folder.glob("*.db")
    with sqlite3.connect(database) as connection:
        return json.loads(connection.execute("select metrics from metrics order by step").fetchone()[0])["loss"]
