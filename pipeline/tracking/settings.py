"""Which tracker a run's numbers are logged to, and where that keeps them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_ext.schema import Line, Strict

Kind = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class TrackingSettings(Strict):
    """A tracker, which a process beside the run logs step logs and metrics to."""

    kind: Kind
    project: Line = Field("unlearning", min_length=1, description="of mlflow the experiment; tensorboard has none")
    server: Line | None = Field(
        None, description="mlflow's tracking URI; default: a file store in the folder tracking/ of the results"
    )
    offline: bool = Field(False, description="wandb: write into tracking/, to be sent later by `wandb sync`")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.server is not None and self.kind != "mlflow":
            raise ValueError("server: is for kind: mlflow alone")
        if self.server is not None and "@" in self.server:
            raise ValueError("server: holds a password; mlflow reads MLFLOW_TRACKING_USERNAME and _PASSWORD")
        if self.offline and self.kind != "wandb":
            raise ValueError("offline: is for kind: wandb alone; the others need no connection")
        return self

    @property
    def missing(self) -> str | None:
        """What to do where the tracker's package is not installed; ``None`` where it is."""
        if find_spec(self.kind) is not None:
            return None
        return f"tracking.kind: the package {self.kind!r} is not installed: pip install -e '.[{self.kind}]'"
