"""An unlearning run: a method's losses and update rule over paired batches of forget and retain rows.

Each optimizer step pairs forget rows with as many retain rows, takes the two gradients, and moves along the direction
that the rule makes of them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

from megatron_ext.atomic_files import write_text
from megatron_ext.checkpoint import patching, reading, writing
from megatron_ext.checkpoint.fingerprint import model_fingerprint
from megatron_ext.data.sampling import TopicRoundRobin
from megatron_ext.distributed.process_groups import Ranks
from megatron_ext.losses.nll import NLL
from megatron_ext.model.build import LanguageModel
from megatron_ext.specs import UnlearnSpec
from megatron_ext.summary import Clock
from megatron_ext.training import loop, validation
from megatron_ext.training.reference_model import OffloadedReferenceModel, ReferenceMatrices, ReferenceModel
from megatron_ext.training.resume import Resume
from megatron_ext.training.schedule import learning_rate
from megatron_ext.training.step import Step, StepPosition
from megatron_ext.training.topics import TopicData
from megatron_ext.training.trainer import LossTerm, Trainer
from megatron_ext.training.validation import Validator

SHOWN = 10


def unlearn(spec: UnlearnSpec, ranks: Ranks, clock: Clock) -> None:
    """Run ``spec`` and write checkpoint/, steps.jsonl, trajectory.jsonl (empty without validation) and summary.json
    into its output folder. Collective."""
    fingerprint, hf_config = model_fingerprint(spec.checkpoint), reading.read_config(spec.checkpoint)
    topics = [TopicData(topic, spec, fingerprint, hf_config) for topic in spec.topics]
    flags = _overlaps(topics, ranks)
    order = TopicRoundRobin(tuple(topic.pairs for topic in topics), spec.max_steps)
    warmup = spec.optimizer.schedule.warmup_steps + round(spec.warmup_epochs * order.steps_per_epoch)
    model = reading.load(spec.checkpoint, ranks, spec.trainable_layers, training=spec.runtime)
    trainer = Trainer(model, ranks, spec.optimizer, spec.batching.micro_batch, _reference_model(spec, model, ranks))
    before = trainer.checksum()
    state = spec.rule.start(_retain_loss(topics))
    identity = {
        "spec": spec.model_dump(mode="json", exclude={"runtime": {"timeout_seconds"}, "output": True}),
        "data": [topic.digests() for topic in topics],
        "model": fingerprint,
    }
    validator = Validator(spec, trainer, topics, order) if spec.validation is not None else None
    resume = Resume(spec.output, identity, trainer, state, validator)
    check = CollapseCheck(spec, trainer, topics[0]) if spec.trainable_layers is None else None
    clock.mark("startup")

    def step(i: int) -> tuple[dict[str, Any], int, bool]:
        which, own = order.at(i)
        topic = topics[which]
        terms = topic.terms(own)
        rate = learning_rate(spec.optimizer, i, order.steps, warmup)
        place = StepPosition(i, i // order.steps_per_epoch, order.ends_epoch(i))
        begun = dict(state)
        taken = trainer.step(terms, spec.rule, rate, spec.diagnostics, state, place, topic.retain_term)
        notes = [taken.note] if taken.note else []
        if taken.update_norm == 0:
            notes.append("the direction is zero: the weights change by weight decay at most")
        retain_nll = check.measure() if check and place.ends_epoch else None
        if check and retain_nll is not None and check.collapsed(retain_nll):
            notes.append(f"collapsed: {check.describe(retain_nll)}")
        if notes and ranks.world_rank == 0:
            print(f"step {i}: {'; '.join(notes)}", file=sys.stderr)
        tokens = sum(int(term.pool.lengths[list(term.rows)].sum()) for term in terms)
        return _record(taken, order.epoch(i), begun, retain_nll, notes), tokens, taken.stop

    def validate(steps: int) -> None:
        if validator is not None:
            clock.mark("work")
            validator.measure(steps)
            clock.mark("work", "validation")

    with loop.stoppable(trainer):
        loop.run(trainer, resume, order.steps, spec.checkpoint_every, step, f"unlearn {spec.output.name}", validate)
        select, selected, why = "last", order.steps, "the last step"
        if validator is not None and validator.selects:
            select, selected, why = "best-on-validation", validator.load_best(), validator.why()
        changed = (trainer.checksum() != before).any().long()
        if ranks.world_size > 1:
            torch.distributed.all_reduce(changed)
        if spec.rule.extrapolation != 1.0 and select == "last":  # the best ones were extrapolated when they were kept
            reading.extrapolate(model, ranks, spec.checkpoint, spec.rule.extrapolation)
        after = check.measure() if check else None
        clock.mark("work")
        trainer.refuse_broken_weights()
        if spec.trainable_layers is None:
            writing.save(model, ranks, spec.output / "checkpoint", spec.checkpoint)
        else:
            patching.save_changed(model, ranks, spec.output / "checkpoint", spec.checkpoint)
        trajectory = validator.text() if validator is not None else ""
        if ranks.world_rank == 0:
            write_text(spec.output / validation.FILE, trajectory)
        resume.finish(spec.output / "steps.jsonl")
        clock.mark("write")
    if ranks.world_rank == 0:
        lines = (spec.output / "steps.jsonl").read_text().splitlines()
        notes = sorted({note for line in lines if (note := json.loads(line)["note"])})
        flags += [] if changed else ["unchanged"]
        flags += ["collapsed"] if check and after is not None and check.collapsed(after) else []
        chosen = {"select": select, "selected_step": selected, "selected_because": why}
        facts = {"notes": notes[:SHOWN], "retain_nll": after, "rule_state": dict(state)}
        clock.write(spec.output, flags, steps=order.steps, **chosen, **facts)


class CollapseCheck:
    """The retain negative log-likelihood of one fixed batch, to see a model that has collapsed."""

    def __init__(self, spec: UnlearnSpec, trainer: Trainer, topic: TopicData) -> None:
        rows = list(range(min(len(topic.retain), spec.batching.global_batch)))
        self._term, self._trainer = LossTerm("retain_nll", NLL(), topic.retain_pool, rows), trainer
        self._bound = math.log(trainer.model.hf_config["vocab_size"])

    def measure(self) -> float:
        """Nats a token; one forward pass. Raises ``NonFinite`` where the model gives NaN."""
        return self._trainer.mean_loss(self._term)

    def collapsed(self, nll: float) -> bool:
        """Whether the model predicts retained text no better than a uniform guess over the vocabulary."""
        return not nll < self._bound

    def describe(self, nll: float) -> str:
        return f"retained text costs {nll:.3g} nats a token, a uniform guess {self._bound:.3g}"


def _record(
    taken: Step, epoch: float, state: dict[str, float], retain_nll: float | None, notes: Sequence[str]
) -> dict[str, Any]:
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


def _reference_model(spec: UnlearnSpec, model: LanguageModel, ranks: Ranks) -> ReferenceModel | None:
    if not any(loss is not None and loss.needs_reference_model for loss in (spec.forget_loss, spec.retain_loss)):
        return None
    if spec.trainable_layers is not None:
        return ReferenceMatrices(model, ranks)
    return OffloadedReferenceModel(reading.load(spec.checkpoint, ranks), ranks)


def _retain_loss(topics: list[TopicData]) -> float | None:
    """Nats a token over the whole retain set, before unlearning."""
    known = [topic.retain_loss for topic in topics if topic.retain_loss is not None]
    return sum(loss for loss, _ in known) / sum(tokens for _, tokens in known) if known else None


def _overlaps(topics: list[TopicData], ranks: Ranks) -> list[str]:
    flags = []
    for topic in topics:
        rows = topic.overlap()
        if rows:
            flags.append("overlap")
            if ranks.world_rank == 0:
                shown = ", ".join(f"{i} = {j}" for i, j in rows[:SHOWN]) + (", ..." if len(rows) > SHOWN else "")
                print(
                    f"warning: topic {topic.name}: {len(rows)} forget sequences are in the retain set too "
                    f"(forget row = retain row: {shown})",
                    file=sys.stderr,
                )
    return sorted(set(flags))
