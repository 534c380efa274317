"""Checkpoints of a run's epochs, which are evaluated beside the model that the run ends in.

While the run goes on they lie in the folder of its states, because a workflow clears a step's outputs before it starts
the step again. At the end they become the folder ``epochs`` of the run's output.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_ext.checkpoint import reading
from megatron_ext.checkpoint.folders import replacing
from megatron_ext.data.sampling import TopicRoundRobin
from megatron_ext.distributed.collectives import barrier
from megatron_ext.specs import UnlearnSpec, epoch_folder
from megatron_ext.training.resume import folder_of
from megatron_ext.training.trainer import Trainer

FOLDER = "epochs"


def steps_of(epochs: Sequence[int], order: TopicRoundRobin) -> dict[int, int]:
    """After how many optimizer steps each epoch ends, by epoch; a last epoch that is begun ends with the run.

    Raises:
        ValueError: the run ends before an epoch begins
    """
    found = {epoch: min(epoch * order.steps_per_epoch, order.steps) for epoch in epochs}
    for epoch in epochs:
        if (epoch - 1) * order.steps_per_epoch >= order.steps:
            raise ValueError(f"saved_epochs: {epoch}, but the run ends after {order.steps} steps, before that epoch")
    return found


class EpochCheckpoints:
    """Writes a checkpoint at the end of each wanted epoch: a companion of the run's ``Resume``.

    Every method is collective over all ranks.

    Attributes:
        steps: By epoch, after how many steps its checkpoint is written.
    """

    def __init__(
        self, spec: UnlearnSpec, trainer: Trainer, order: TopicRoundRobin, save: Callable[[Path], None]
    ) -> None:
        """Nothing is written yet.

        Args:
            spec: The run; ``saved_epochs`` says which epochs are wanted.
            trainer: What the run trains.
            order: How its topics take turns.
            save: Writes the model as it is as a checkpoint folder.
        """
        self._spec, self._trainer, self._save = spec, trainer, save
        self._folder = folder_of(spec.output) / FOLDER
        self.steps = steps_of(spec.saved_epochs, order)

    # What ``Resume`` asks of a companion.

    def wrong(self, steps: int) -> str:
        """That the checkpoint of an epoch before the state is missing."""
        ended = (self._of(epoch) for epoch, after in self.steps.items() if after <= steps)
        return next((f"{folder} is missing" for folder in ended if not folder.is_dir()), "")

    def restore(self, steps: int) -> None:
        """Checkpoints of epochs that the run goes through once more are written over."""

    def flush(self) -> None:
        """A folder has its name when all of it is written."""

    def saved(self) -> None:
        """Checkpoints stay until the end."""

    # The run.

    def after(self, steps: int) -> None:
        """Write the weights, if an epoch that is wanted ends after ``steps`` steps. Raises ``NonFinite`` on every rank
        where they are not finite."""
        for epoch, end in self.steps.items():
            if end == steps:
                self._trainer.refuse_broken_weights()
                with as_written(self._trainer, self._spec):
                    self._save(self._of(epoch))

    def publish(self) -> None:
        """Have the checkpoints in the output; those in the folder of states stay until that is deleted."""
        ranks, target = self._trainer.ranks, self._spec.output / FOLDER
        if ranks.world_rank == 0:
            if self.steps:
                with replacing(target) as partial:
                    shutil.copytree(self._folder, partial, dirs_exist_ok=True, copy_function=_link)
            else:  # of an earlier run with other settings
                shutil.rmtree(target, ignore_errors=True)
        barrier(ranks)

    def _of(self, epoch: int) -> Path:
        return self._folder / epoch_folder(epoch)


@contextmanager
def as_written(trainer: Trainer, spec: UnlearnSpec) -> Iterator[None]:
    """The model with the weights that the run would end in now; costs a copy of them where its rule extrapolates, and
    nothing elsewhere. Collective over all ranks."""
    if spec.rule.extrapolation == 1.0:
        yield
        return
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    reading.extrapolate(trainer.model, trainer.ranks, spec.checkpoint, spec.rule.extrapolation)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(trained, kept, strict=True):
                p.copy_(value)


def _link(source: str, target: str) -> None:
    """A second name of a file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
