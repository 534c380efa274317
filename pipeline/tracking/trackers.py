"""The trackers: each logs numbers of several runs at a time. Their packages are imported when one is made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking.follow import Tracker
from pipeline.tracking.settings import TrackingSettings


def tracker_of(settings: TrackingSettings, experiment: str, folder: Path) -> Tracker:
    """The tracker of the settings.

    Args:
        settings: Which one, and its options.
        experiment: The experiment's name, which its runs' names begin with.
        folder: Where it keeps what it does not send.
    """
    made: dict[str, Callable[[TrackingSettings, str, Path], Tracker]] = {
        "tensorboard": TensorBoard,
        "mlflow": MlFlow,
        "wandb": Wandb,
        "trackio": Trackio,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return made[settings.kind](settings, experiment, folder)


class TensorBoard:
    """Event files, a folder for each run, for ``tensorboard --logdir``."""

    def __init__(self, settings: TrackingSettings, experiment: str, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.event, self.summary, self.writer = Event, Summary, EventFileWriter
        self.folder, self.writers = folder, dict[str, Any]()

    def log(self, run: str, name: str, values: Mapping[str, float], step: int) -> None:
        if run not in self.writers:
            self.writers[run] = self.writer(str(self.folder / run))
        shown = [self.summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self.writers[run].add_event(self.event(step=step, wall_time=time.time(), summary=self.summary(value=shown)))

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class MlFlow:
    """An mlflow experiment, in a file store or on a server; runs are found again by a tag."""

    def __init__(self, settings: TrackingSettings, experiment: str, folder: Path) -> None:
        # Newer versions of mlflow ask for it where runs are kept in files.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(settings.server or folder.absolute().as_uri())
        found = self.client.get_experiment_by_name(settings.project)
        self.project = found.experiment_id if found else self.client.create_experiment(settings.project)
        self.experiment, self.runs = experiment, dict[str, str]()

    def log(self, run: str, name: str, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        if run not in self.runs:
            tag = f"{self.experiment}/{run}"
            known = self.client.search_runs([self.project], f"tags.unlearning = '{tag}'")
            tags = {"unlearning": tag, "mlflow.runName": f"{self.experiment} {name}"}
            made = known[0] if known else self.client.create_run(self.project, tags=tags)
            self.runs[run] = made.info.run_id
        now = time.time_ns() // 1_000_000
        self.client.log_batch(self.runs[run], [Metric(key, value, now, step) for key, value in values.items()])

    def close(self) -> None:
        for run in self.runs.values():
            self.client.set_terminated(run)


class Wandb:
    """Runs of a Weights & Biases project; offline they are folders that ``wandb sync`` sends."""

    def __init__(self, settings: TrackingSettings, experiment: str, folder: Path) -> None:
        import wandb

        self.module, self.settings, self.experiment, self.folder = wandb, settings, experiment, folder
        self.runs = dict[str, Any]()

    def log(self, run: str, name: str, values: Mapping[str, float], step: int) -> None:
        if run not in self.runs:
            self.runs[run] = self.module.init(
                project=self.settings.project,
                group=self.experiment,
                name=name,
                id=f"{self.experiment}-{run}",
                dir=str(self.folder),
                mode="offline" if self.settings.offline else "online",
                resume=None if self.settings.offline else "allow",
                reinit="create_new",
            )
        self.runs[run].log(dict(values), step=step)

    def close(self) -> None:
        for run in self.runs.values():
            run.finish()


class Trackio:
    """Runs of a trackio project, in its local database below the folder."""

    def __init__(self, settings: TrackingSettings, experiment: str, folder: Path) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder.absolute()))
        import trackio

        self.module, self.settings, self.experiment = trackio, settings, experiment
        self.runs = dict[str, Any]()

    def log(self, run: str, name: str, values: Mapping[str, float], step: int) -> None:
        if run not in self.runs:
            named = f"{self.experiment}/{run}"
            self.runs[run] = self.module.init(project=self.settings.project, name=named, resume="allow", embed=False)
        self.runs[run].log(dict(values), step=step)

    def close(self) -> None:
        for run in self.runs.values():
            run.finish()
