"""A look at the model during unlearning: a fixed sample of forget and retain sequences, scored every so often.

The sample is drawn once, from ``Validation.seed``, out of each topic's tokenised forget and retain set: rows that the
run trains on, in the form that it trains on. It is neither the benchmark's test rows nor one of its metrics, so that a
step can be chosen by it and measured by them.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_ext.checkpoint import peft_folder, reading, tensor_sources, writing
from megatron_ext.checkpoint.adapter_folder import AdapterFolder
from megatron_ext.config.selection import Validation
from megatron_ext.data.collate import SequenceDataset
from megatron_ext.data.sampling import TopicRoundRobin
from megatron_ext.distributed.collectives import from_first_rank, sum_over_data_ranks
from megatron_ext.inference import pipeline_forward
from megatron_ext.model.loss_inputs import LossInputs
from megatron_ext.specs import UnlearnSpec
from megatron_ext.training.accumulator import NonFinite
from megatron_ext.training.best_step import BestStep
from megatron_ext.training.epoch_checkpoints import as_written
from megatron_ext.training.resume import folder_of
from megatron_ext.training.step_log import StepLog
from megatron_ext.training.topics import TopicData
from megatron_ext.training.trainer import Trainer
from megatron_ext.updates import Objective

FILE = "trajectory.jsonl"


def score(forget_probability: float, retain_probability: float, retain_before: float) -> float:
    """The harmonic mean of ``1 - forget_probability`` and ``min(1, retain_probability / retain_before)``.

    It is 0 where both are.

    Args:
        forget_probability: Mean probability of the sampled forget rows, a token.
        retain_probability: The same of the sampled retain rows.
        retain_before: ``retain_probability`` before the first step; where it was 0, nothing could be lost.

    Returns:
        A number from 0 to 1; higher is better.
    """
    forgotten = max(0.0, 1 - forget_probability)
    retained = min(1.0, retain_probability / retain_before) if retain_before > 0 else 1.0
    return 2 * forgotten * retained / (forgotten + retained) if forgotten + retained > 0 else 0.0


def draw(size: int, rows: int, seed: int, topic: int, objective: Objective) -> list[int]:
    """``rows`` of ``size`` row numbers, or all, in order."""
    chosen = np.random.default_rng([seed, topic, objective]).choice(size, size=min(rows, size), replace=False)
    return sorted(int(row) for row in chosen)


class Validator:
    """Scores the sample, logs the trajectory, and keeps the best weights so far: a companion of the run's ``Resume``.

    ``resume/trajectory.jsonl`` in the run's output folder has a line a measurement; with ``best-on-validation``,
    ``resume/best-<steps>`` is the Hugging Face folder of the weights with the best score so far, of the first of equal
    ones, or the folder of their adapters, and until the next state there is also that of the newest state. The weights
    before the first step are scored, but not a candidate, nor are the same ones after the first step of a warm-up.
    Where the update rule extrapolates, the weights that are scored and kept are extrapolated: those that the run would
    end in at this step.

    A measurement costs a forward pass over the sample; forward passes take at most as many tokens as the sample's
    longest ``micro_batch`` sequences. Every method is collective over all ranks.
    """

    def __init__(
        self,
        spec: UnlearnSpec,
        validation: Validation,
        trainer: Trainer,
        topics: Sequence[TopicData],
        order: TopicRoundRobin,
    ) -> None:
        """Draw the sample; nothing is scored yet.

        Args:
            spec: The run.
            validation: ``spec.validation``.
            trainer: What the run trains.
            topics: The run's topics.
            order: How they take turns.
        """
        self._spec, self._run = validation, spec
        self._trainer, self._ranks, self._order = trainer, trainer.ranks, order
        self._points = self._spec.points(order.steps, order.steps_per_epoch)
        self._folder = folder_of(spec.output)
        self._log = StepLog(self._folder / FILE, active=self._ranks.world_rank == 0)
        warmup = spec.optimizer.schedule.warmup_steps + order.warmup_steps(spec.warmup_epochs)
        # The first step of a warm-up has the rate 0; the last step of a run may be chosen in any case.
        self._first = min(order.steps, 2 if warmup else 1)
        self.best = BestStep(validation.select, self._first)
        self._best_of_state: int | None = None
        self._dataset = SequenceDataset([*(topic.forget for topic in topics), *(topic.retain for topic in topics)])
        drawn: list[tuple[Objective, int]] = []
        sets = {Objective.FORGET: [t.forget for t in topics], Objective.RETAIN: [t.retain for t in topics]}
        for objective, parts in sets.items():
            for i, sequences in enumerate(parts):
                start = int(self._dataset.starts[objective * len(topics) + i])
                rows = draw(len(sequences), validation.rows, validation.seed, i, objective)
                drawn += [(objective, start + row) for row in rows]
        self._rows = [row for _, row in drawn]
        self._objective_R = torch.tensor([objective for objective, _ in drawn])
        longest = int(self._dataset.lengths[self._rows].max())
        self._budget = spec.batching.sequences_of(longest) * longest

    # What ``Resume`` asks of a companion.

    def wrong(self, steps: int) -> str:
        """That the trajectory is too short or damaged, or that the best weights in it are missing."""
        there, needed = self._log.count(), self._measured(steps)
        if there < needed:
            return f"{self._log.path}: {there} lines, and the state after {steps} steps needs {needed}"
        try:
            best = self._best_of(self._logged(needed))
        except (KeyError, TypeError, ValueError) as error:
            return f"{self._log.path}: {type(error).__name__}: {error}"
        missing = self.selects and best.step and not self._weights(best.step).is_dir()
        return f"{self._weights(best.step or 0)} is missing" if missing else ""

    def restore(self, steps: int) -> None:
        self._log.open(self._measured(steps))
        self.best = self._best_of(from_first_rank(self._logged, self._ranks))
        self._best_of_state = self.best.step
        if self.selects and self._ranks.world_rank == 0:
            self._drop_others()

    def _measured(self, steps: int) -> int:
        """How many measurements a state has behind it."""
        return sum(point <= steps for point in self._points) if steps else 0

    def _best_of(self, rows: Sequence[Mapping[str, Any]]) -> BestStep:
        best = BestStep(self._spec.select, self._first)
        for row in rows:
            best.take(row)
        return best

    def flush(self) -> None:
        self._log.flush()

    def saved(self) -> None:
        self._best_of_state = self.best.step
        if self.selects and self._ranks.world_rank == 0:
            self._drop_others()

    # The run.

    def measure(self, steps: int) -> None:
        """Score the sample, if it is time, now that ``steps`` steps have been taken; log it; keep the weights if they
        are the best. Raises ``NonFinite`` on every rank where a result is not finite."""
        if steps not in self._points:
            return
        begin = time.perf_counter()
        with as_written(self._trainer, self._run):
            row = {"step": steps, "epoch": self._order.epoch(steps - 1) if steps else 0.0, **self._numbers()}
            before = self.best.before or row
            row["score"] = score(row["forget_probability"], row["retain_probability"], before["retain_probability"])
            if self.best.take(row) and self.selects:
                self._keep(self._weights(steps))
        row["seconds"] = round(time.perf_counter() - begin, 6)
        self._log.write(row)
        if self.selects and self._ranks.world_rank == 0:
            self._drop_others()

    def load_best(self) -> int:
        """Set the model's weights to the best ones; after how many steps they were measured."""
        step = self.best.step
        assert step is not None, "the last step is always measured"
        model, folder = self._trainer.model, self._weights(step)
        if model.lora is not None:
            reading.fill_adapters(model, self._ranks, AdapterFolder(folder))
        else:
            reading.fill(model, self._ranks, tensor_sources.SafetensorsFolder(folder))
        return step

    def _keep(self, folder: Path) -> None:
        """Write the weights, of which adapters are all that is trained where there are some."""
        if self._trainer.model.lora is not None:
            peft_folder.save(self._trainer.model, self._ranks, folder, self._run.checkpoint)
        else:
            writing.save(self._trainer.model, self._ranks, folder)

    def reason(self) -> str:
        """A sentence on the selected step, after the last one."""
        forget, retain = (int((self._objective_R == objective).sum()) for objective in Objective)
        sample = f"on {forget} forget and {retain} retain rows (seed {self._spec.seed})"
        return self.best.reason(len(self._points) - 1, sample)

    def text(self) -> str:
        """The trajectory, on world rank 0; nothing is logged from then on."""
        self._log.close()
        return self._log.path.read_text() if self._log.active else ""

    @property
    def selects(self) -> bool:
        """Whether the run ends in the best weights, not in the last."""
        return self._spec.select != "last"

    def _logged(self, count: int | None = None) -> list[dict[str, Any]]:
        """The lines of the trajectory, or the first of them; what follows may be cut off."""
        return [json.loads(line) for line in self._log.path.read_bytes().splitlines()[:count]] if count != 0 else []

    def _weights(self, steps: int) -> Path:
        return self._folder / f"best-{steps:08d}"

    def _drop_others(self) -> None:
        """Delete weights that neither the run nor the newest state needs."""
        needed = {self._weights(step) for step in (self._best_of_state, self.best.step) if step}
        for folder in self._folder.glob("best-*"):
            if folder not in needed:
                shutil.rmtree(folder)

    def _numbers(self) -> dict[str, float]:
        """Means over the sampled forget rows and over the sampled retain rows."""
        log_probs_R, matches_R = self._sums().unbind()
        counts_R = torch.from_numpy(self._dataset.label_counts[self._rows]).double()
        nll_R = -log_probs_R / counts_R
        of_rows = {"probability": (-nll_R).exp(), "nll": nll_R, "greedy_match": matches_R / counts_R}
        means = {
            f"{objective.name.lower()}_{key}": float(values_R[self._objective_R == objective].mean())
            for key, values_R in of_rows.items()
            for objective in Objective
        }
        for name, value in means.items():
            if not math.isfinite(value):
                raise NonFinite(f"validation: {name} is {value}")
        return means

    @torch.no_grad()
    def _sums(self) -> Tensor:
        """Score the sample. Collectives: those of the forward passes, then a broadcast over the pipeline and an
        all-reduce over data-parallel ranks of the result.

        Returns:
            fp64 ``[2, R]`` on every rank, on the CPU: of each of the ``R`` sampled rows the sum of its labels'
            log-probabilities, and how many of them are the most likely token where they stand, given those before.
        """
        accumulator, ranks, model = self._trainer.accumulator, self._ranks, self._trainer.model
        vocabulary = accumulator.vocabulary
        sums_2R = torch.zeros(2, len(self._rows), dtype=torch.float64, device=ranks.device)
        stages = pipeline_forward.PipelineForward(model, ranks)
        batches = pipeline_forward.plan(self._dataset.lengths[self._rows].tolist(), self._budget, ranks)
        for places in pipeline_forward.rank_batches(batches, ranks, "validation", progress=False):
            rows = [self._rows[i] for i in places]
            batch = self._dataset.collate(rows, ranks.device, multiple=accumulator.length_multiple)
            hidden_SBH = stages.forward(batch.tokens)
            if hidden_SBH is None:
                continue
            hidden_NH = model.gather_positions(hidden_SBH, batch.index)
            inputs = LossInputs(hidden_NH, batch, model.logits, vocabulary)
            right_N = inputs.at_each_position(lambda part: part.vocabulary.argmax(part.logits) == part.targets)
            each_2N = torch.stack([inputs.log_probs.double(), right_N.double()])
            sums_2R[:, places] = torch.stack([inputs.per_sequence(values_N) for values_N in each_2N])
        stages.finish()
        return sum_over_data_ranks(stages.from_last(sums_2R), ranks).cpu()
