"""The loop that training and unlearning share: steps, log, progress, resume states, an orderly stop."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from megatron_ext.distributed.collectives import from_first_rank
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.training.accumulator import NonFinite
from megatron_ext.training.resume import Resume
from megatron_ext.training.trainer import Trainer

STOPPED = 143  # the exit status of a program that SIGTERM ended, which a scheduler may start again
# SIGURG asks for the same, and programs that do not know it ignore it: a scheduler that signals every process of a job
# does not end those that a rank needs to write its state, such as the one that serves the files of its container.
REQUESTS = (signal.SIGTERM, signal.SIGURG)


@dataclass(frozen=True)
class StepOutcome:
    """What the loop learns of a step: its log record, the tokens it worked on, and whether some rank was asked to stop
    (see ``stoppable``)."""

    record: dict[str, Any]
    tokens: int
    stop: bool


@contextmanager
def stoppable(trainer: Trainer) -> Iterator[None]:
    """Until the end of this, a request to stop ends the run after a step, with a state, and nothing else.

    It comes more than once where a scheduler, a container and a launcher all pass it on, so only the first one counts.
    A ``SIGURG`` that a launcher has held back, because it came earlier than this, counts too. After the last step the
    model is written in any case.
    """

    def ask_to_stop(*_: Any) -> None:
        trainer.stop_requested = True

    previous = {number: signal.signal(number, ask_to_stop) for number in REQUESTS}
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGURG])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(
    trainer: Trainer,
    resume: Resume,
    steps: int,
    checkpoint_every: int,
    step: Callable[[int], StepOutcome],
    title: str,
    validate: Callable[[int], None] | None = None,
    ended: Callable[[], bool] | None = None,
    checkpoint_minutes: float | None = None,
) -> None:
    """Take the steps that are left. Collective over all ranks.

    Args:
        trainer: What ``step`` trains.
        resume: The run's state on disk, from which it goes on.
        steps: Optimizer steps of the whole run.
        checkpoint_every: Steps between states; 0 writes none but that of a stop.
        step: Takes the step of the given number.
        title: What the progress bar says.
        validate: Called before the first step of a run and after each, with the number of steps taken.
        ended: Asked before each step whether the run ends without it; the same on every rank.
        checkpoint_minutes: Minutes between states, by the clock of the first rank, for two broadcasts a step.

    Raises:
        NonFinite: A loss, gradient or weight is not finite. The message names the step; no state is written of it.
        SystemExit: With status 143 after writing a state, where a rank was asked to stop before the last step.
    """
    from tqdm import tqdm

    first = resume.restore()
    leader = trainer.ranks.world_rank == 0
    quiet = not sys.stderr.isatty()
    due = _Due(checkpoint_every, checkpoint_minutes, trainer.ranks)
    bar = tqdm(
        total=steps, initial=first, desc=title, unit="step", disable=not leader, mininterval=10 if quiet else 0.1
    )
    with bar:
        if validate is not None and first == 0:
            with _naming(0, resume):
                validate(0)
        for i in range(first, steps):
            if ended is not None and ended():
                break
            begin = time.perf_counter()
            with _naming(i, resume):
                outcome = step(i)
            seconds = time.perf_counter() - begin
            timing = {"seconds": round(seconds, 6), **trainer.memory()}
            resume.log.write({"step": i, **outcome.record, "tokens": outcome.tokens, **timing})
            bar.set_postfix_str(_brief(outcome.record, outcome.tokens / seconds), refresh=False)
            bar.update()
            done = i + 1
            with _naming(i, resume):
                if validate is not None:
                    validate(done)
                if done < steps and (outcome.stop or due.after(done)):
                    trainer.refuse_broken_weights()
                    resume.save(done)
                    due.saved()
            if outcome.stop and done < steps:
                if leader:
                    print(f"asked to stop: the state after step {done} of {steps} is in {resume.folder}", flush=True)
                sys.exit(STOPPED)


class _Due:
    """When a state is to be written: every so many steps, every so many minutes, or never."""

    def __init__(self, steps: int, minutes: float | None, ranks: Ranks) -> None:
        self._steps, self._minutes, self._ranks = steps, minutes, ranks
        self.saved()

    def saved(self) -> None:
        """Count minutes from now."""
        self._since = time.monotonic()

    def after(self, done: int) -> bool:
        """Whether it is time after ``done`` steps. Collective where minutes count: clocks differ, ranks must not."""
        if self._steps and done % self._steps == 0:
            return True
        minutes = self._minutes
        if minutes is None:
            return False
        return from_first_rank(lambda: time.monotonic() - self._since >= 60 * minutes, self._ranks)


@contextmanager
def _naming(step: int, resume: Resume) -> Iterator[None]:
    """Say in a ``NonFinite`` at which step it came up, and which state is kept."""
    try:
        yield
    except NonFinite as error:
        raise NonFinite(f"step {step}: {error}. {resume.kept()}") from error


def _brief(record: dict[str, Any], speed: float) -> str:
    shown = [(k.removesuffix("_loss"), v) for k, v in record.items() if k.endswith("loss") and v is not None]
    return ", ".join(f"{k} {v:.4g}" for k, v in shown if math.isfinite(v)) + f", {speed:,.0f} tokens/s"
