"""An unlearning run: a method's losses and update rule over paired batches of forget and retain rows.

Each optimizer step pairs forget rows with as many retain rows, takes the two gradients, and moves along the direction
that the rule makes of them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.atomic_files import write_text
from megatron_ext.checkpoint import patching, peft_folder, reading, writing
from megatron_ext.checkpoint.fingerprint import model_fingerprint
from megatron_ext.data.sampling import TopicRoundRobin
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.model.build import LanguageModel
from megatron_ext.specs import UnlearnSpec
from megatron_ext.training import validation
from megatron_ext.training.collapse import CollapseCheck
from megatron_ext.training.epoch_checkpoints import EpochCheckpoints
from megatron_ext.training.loop import StepOutcome
from megatron_ext.training.reference_model import ReferenceBase, ReferenceCopy, ReferenceMatrices, ReferenceModel
from megatron_ext.training.resume import Companion, Resume
from megatron_ext.training.schedule import learning_rate
from megatron_ext.training.step import Step
from megatron_ext.training.topics import TopicData, mean_retain_loss
from megatron_ext.training.trainer import Trainer
from megatron_ext.training.validation import Validator
from megatron_ext.updates import StepPosition, Vector

SHOWN = 10


@dataclass(frozen=True)
class Selected:
    """Which weights a run ends in: ``select`` as in the specification, after how many steps, and why."""

    select: str
    step: int
    because: str


class UnlearningRun:
    """What an unlearning run is made of, and its parts in the order in which ``steps.unlearn`` calls them.

    Every method is collective over all ranks.

    Attributes:
        trainer: The model and its optimizer.
        resume: The run's state on disk.
        steps: Optimizer steps of the whole run; from ``select`` on, those that were taken.
        flags: What ``summary.json`` wants noticed: ``overlap``, ``unchanged``, ``collapsed``, ``over-budget``,
            ``stopped-early``.
    """

    def __init__(self, spec: UnlearnSpec, ranks: Ranks) -> None:
        """Read data and model.

        Args:
            spec: The run.
            ranks: Where this process stands.

        Raises:
            ValueError: For data that do not fit the model or each other; see ``TopicData``.
        """
        self._spec, self._ranks = spec, ranks
        fingerprint, hf_config = model_fingerprint(spec.checkpoint), reading.read_config(spec.checkpoint)
        self._topics = [TopicData(topic, spec, fingerprint, hf_config) for topic in spec.topics]
        self.flags = _warn_of_overlaps(self._topics, ranks)
        self._order = TopicRoundRobin(tuple(topic.sampler for topic in self._topics), spec.max_steps)
        self.steps = self._order.steps
        warmup_by_epochs = self._order.warmup_steps(spec.warmup_epochs)
        self._warmup_steps = spec.optimizer.schedule.warmup_steps + warmup_by_epochs
        model = reading.load(spec.checkpoint, ranks, spec.trainable_layers, training=spec.runtime)
        if spec.lora is not None:
            reading.add_adapters(model, ranks, spec.lora, spec.seed)
        before = reference_model(spec, model, ranks, lambda: reading.load(spec.checkpoint, ranks))
        batching, memory = spec.batching, spec.runtime.memory
        micro, tokens = batching.micro_batch, batching.micro_batch_tokens
        self.trainer = Trainer(model, ranks, spec.optimizer, micro, before, tokens, memory, batching.packed)
        self._before = self.trainer.checksum()
        self._state = spec.rule.start(mean_retain_loss(self._topics))
        self._kept: dict[str, Vector] = {}
        self._validator: Validator | None = None
        if spec.validation is not None:
            self._validator = Validator(spec, spec.validation, self.trainer, self._topics, self._order)
        self._epochs = EpochCheckpoints(spec, self.trainer, self._order, self._save)
        identity = {
            "spec": spec.model_dump(mode="json", exclude={"runtime": {"timeout_seconds"}, "output": True}),
            "data": [topic.digests() for topic in self._topics],
            "model": fingerprint,
        }
        companions: list[Companion] = [self._epochs, *([self._validator] if self._validator else [])]
        self.resume = Resume(spec.output, identity, self.trainer, self._state, self._kept, companions)
        self._check: CollapseCheck | None = None  # part of a model gives no probabilities
        if spec.trainable_layers is None:
            self._check = CollapseCheck(self.trainer.accumulator, self._topics[0], spec.batching.global_batch)

    def step(self, i: int) -> StepOutcome:
        """Take optimizer step ``i``."""
        turn = self._order.turn(i)
        topic = self._topics[turn.topic]
        terms = topic.terms(turn.step)
        rate = learning_rate(self._spec.optimizer, i, self.steps, self._warmup_steps)
        order = self._order
        position = StepPosition(i, order.pass_of(i), order.ends_epoch(i), order.trainer_passes(i))
        begun = dict(self._state)
        taken = self.trainer.step(
            terms,
            self._spec.rule,
            rate,
            self._spec.diagnostics,
            self._state,
            position,
            topic.retain_term,
            self._kept,
        )
        notes = [taken.note] if taken.note else []
        if taken.update_norm == 0:
            notes.append("the direction is zero: the weights change by weight decay at most")
        retain_nll = self._check.measure() if self._check and position.ends_epoch else None
        if self._check and retain_nll is not None and self._check.collapsed(retain_nll):
            notes.append(f"collapsed: {self._check.describe(retain_nll)}")
        if notes and self._ranks.world_rank == 0:
            print(f"step {i}: {'; '.join(notes)}", file=sys.stderr)
        record = _record(taken, self._order.epoch(i), begun, retain_nll, notes)
        return StepOutcome(record, sum(term.tokens for term in terms), taken.stop)

    def validate(self, steps: int) -> None:
        """Score the validation sample, if there is one and it is time, after ``steps`` steps."""
        if self._validator is not None:
            self._validator.measure(steps)

    def save_epoch(self, steps: int) -> None:
        """Write the checkpoint of an epoch, if one that is wanted ends after ``steps`` steps."""
        self._epochs.after(steps)

    def ended(self) -> bool:
        """Whether the run ends before its last step, because its budget is broken."""
        return self._validator is not None and self._validator.best.broke is not None

    def select(self) -> Selected:
        """Set the model to the weights that the run ends in. Sets the flags ``unchanged``, ``over-budget`` and
        ``stopped-early``."""
        selected, validator = Selected("last", self.steps, "the last step"), self._validator
        if validator is not None and validator.selects:
            step = validator.load_best()
            best = validator.best
            selected = Selected(best.name, step, validator.reason())
            if not best.within_budget:
                self.flags.append("over-budget")
            if best.broke is not None and best.broke < self.steps:
                self.flags.append("stopped-early")
                self.steps = best.broke
        if not self.trainer.changed_since(self._before):
            self.flags.append("unchanged")
        factor = self._spec.rule.extrapolation
        if factor != 1.0 and selected.select == "last":  # the best ones were extrapolated when they were kept
            reading.extrapolate(self.trainer.model, self._ranks, self._spec.checkpoint, factor)
        return selected

    def final_retain_nll(self) -> float | None:
        """Nats a token of retained text, where the whole model is built. Sets the flag ``collapsed``."""
        if self._check is None:
            return None
        nll = self._check.measure()
        if self._check.collapsed(nll):
            self.flags.append("collapsed")
        return nll

    def write(self) -> None:
        """Write checkpoint, adapters if there are some, checkpoints of epochs, trajectory and step log; the run's
        states are deleted.

        Raises:
            NonFinite: The weights are not finite; nothing was written.
        """
        spec, ranks = self._spec, self._ranks
        self.trainer.refuse_broken_weights()
        self._save(spec.output / "checkpoint", spec.output / "adapter")
        self._epochs.publish()
        trajectory = self._validator.text() if self._validator is not None else ""
        if ranks.world_rank == 0:
            write_text(spec.output / validation.FILE, trajectory)
            if spec.lora is None:  # of an earlier run with other settings
                shutil.rmtree(spec.output / "adapter", ignore_errors=True)
        self.resume.finish(spec.output / "steps.jsonl")

    def _save(self, folder: Path, adapter: Path | None = None) -> None:
        """Write the model as a checkpoint, and its adapters where it has some."""
        spec, ranks, model = self._spec, self._ranks, self.trainer.model
        if spec.lora is not None:
            adapter = adapter or self.resume.folder / "adapter"
            peft_folder.save(model, ranks, adapter, spec.checkpoint)
            peft_folder.merge(spec.checkpoint, adapter, folder, ranks)
        elif spec.trainable_layers is None:
            writing.save(model, ranks, folder, spec.checkpoint)
        else:
            patching.save_changed(model, ranks, folder, spec.checkpoint)

    def facts(self, selected: Selected, retain_nll: float | None) -> dict[str, Any]:
        """What ``summary.json`` says beside times and flags; on world rank 0, after ``write``."""
        lines = (self._spec.output / "steps.jsonl").read_text().splitlines()
        notes = sorted({note for line in lines if (note := json.loads(line)["note"])})
        return {
            "steps": self.steps,
            "select": selected.select,
            "selected_step": selected.step,
            "selected_because": selected.because,
            "notes": notes[:SHOWN],
            "retain_nll": retain_nll,
            "rule_state": dict(self._state),
            **({"saved_epochs": {str(k): v for k, v in self._epochs.steps.items()}} if self._epochs.steps else {}),
        }


def _record(
    taken: Step, epoch: float, state: dict[str, float], retain_nll: float | None, notes: Sequence[str]
) -> dict[str, Any]:
    """A line of ``steps.jsonl``; ``state``: the rule's numbers as the step found them."""
    p = taken.products
    return {
        "epoch": epoch,
        "forget_loss": taken.losses.get("forget_loss"),
        "retain_loss": taken.losses.get("retain_loss"),
        "forget_grad_norm": p.ff**0.5 if p else None,
        "retain_grad_norm": p.rr**0.5 if p and len(taken.terms) == 2 else None,
        "grad_cosine": p.cosine if p else None,
        "forget_alignment": taken.forget_alignment,
        "retain_alignment": taken.retain_alignment,
        "update_norm": taken.update_norm,
        "learning_rate": taken.rate,
        "dual": state.get("dual"),
        "rule_state": state or None,
        "retain_nll": retain_nll,
        "note": "; ".join(notes) or None,
    }


def reference_model(
    spec: UnlearnSpec, model: LanguageModel, ranks: Ranks, copy: Callable[[], LanguageModel]
) -> ReferenceModel | None:
    """The model before unlearning, where a loss needs more of it than cached numbers.

    Args:
        spec: The run.
        model: The model that is trained, before its first step.
        ranks: Where this process stands.
        copy: Makes a second one, if one is needed.

    Returns:
        The model, or None.
    """
    if not any(loss is not None and loss.needs_reference_model for loss in (spec.forget_loss, spec.retain_loss)):
        return None
    if model.lora is not None:
        return ReferenceBase(model, ranks)
    if spec.trainable_layers is not None:
        return ReferenceMatrices(model, ranks)
    return ReferenceCopy(copy(), ranks, spec.runtime.reference_model == "offloaded")


def _warn_of_overlaps(topics: Sequence[TopicData], ranks: Ranks) -> list[str]:
    """Say which forget sequences are in the retain set too; the flag ``overlap`` where there are any."""
    flags: list[str] = []
    for topic in topics:
        overlaps = topic.overlaps()
        if not overlaps:
            continue
        flags = ["overlap"]
        if ranks.world_rank == 0:
            rows = ", ".join(f"{each.forget_row} = {each.retain_row}" for each in overlaps[:SHOWN])
            more = ", ..." if len(overlaps) > SHOWN else ""
            print(
                f"warning: topic {topic.name}: {len(overlaps)} forget sequences are in the retain set too "
                f"(forget row = retain row: {rows}{more})",
                file=sys.stderr,
            )
    return flags
