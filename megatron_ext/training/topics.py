"""A topic's sequences as an unlearning run reads them: checked, with what was computed of them before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ext.data.collate import SequenceDataset
from megatron_ext.data.reference_log_probs import load_reference
from megatron_ext.data.sampling import ForgetRetainSampler, preferred_answer
from megatron_ext.data.sequences import Sequences
from megatron_ext.model.families import family_of
from megatron_ext.specs import Topic, UnlearnSpec
from megatron_ext.training.loss_terms import LossTerm


@dataclass(frozen=True)
class SummedLoss:
    """A negative log-likelihood in nats, summed over ``tokens`` tokens."""

    total: float
    tokens: int


@dataclass(frozen=True)
class Overlap:
    """A sequence that is in both sets, token for token: its row in each."""

    forget_row: int
    retain_row: int


class TopicData:
    """The sequences of one topic and its batches.

    Attributes:
        name: The topic's name.
        forget: The forget set.
        retain: The retain set.
        preferred_answers: Other answers to the forget set's prompts, equally many of each row, row by row.
        forget_dataset: The forget set, then the preferred answers, with their reference log-probabilities.
        retain_dataset: The retain set.
        retain_loss: That of the model before unlearning over the whole retain set, where it is known.
        sampler: Which rows make up each of the topic's steps.
    """

    def __init__(self, topic: Topic, spec: UnlearnSpec, fingerprint: str, hf_config: Mapping[str, Any]) -> None:
        """Read and check a topic's files.

        Args:
            topic: The files.
            spec: The run that it belongs to.
            fingerprint: Of the checkpoint that unlearning starts from.
            hf_config: Its ``config.json``.

        Raises:
            ValueError: Naming the file, for no sequences, for sequences that the model cannot read, for cached numbers
                of other data or another model, and for preferred answers that are not equally many of each forget row.
        """
        self.name, self._spec = topic.name, spec
        self.forget, self.retain = _read(topic.forget_data, hf_config), _read(topic.retain_data, hf_config)
        self.preferred_answers: Sequences | None = None
        parts, caches = [self.forget], [topic.reference_logps]
        if topic.preferred_answers is not None:
            self.preferred_answers = _read(topic.preferred_answers, hf_config)
            if len(self.preferred_answers) % len(self.forget):
                raise ValueError(
                    f"{topic.preferred_answers}: {len(self.preferred_answers)} answers are not equally many for "
                    f"each of the {len(self.forget)} rows of {topic.forget_data}"
                )
            parts.append(self.preferred_answers)
            caches.append(topic.preferred_answers_logps)
        known = [load_reference(path, part, fingerprint) for path, part in zip(caches, parts, strict=True) if path]
        self._reference_logps = np.concatenate(known) if len(known) == len(parts) else None
        self.forget_dataset = SequenceDataset(parts, self._reference_logps)
        self.retain_dataset = SequenceDataset([self.retain])
        self.retain_loss: SummedLoss | None = None
        if topic.retain_reference_logps:
            log_probs = load_reference(topic.retain_reference_logps, self.retain, fingerprint)
            self.retain_loss = SummedLoss(-float(log_probs.sum()), int(self.retain.label_counts.sum()))
        self.sampler = ForgetRetainSampler(
            forget=len(self.forget),
            retain=len(self.retain) if spec.retain_loss else 0,
            batch=spec.batching.global_batch,
            epochs=spec.epochs,
            seed=spec.seed,
            accumulation=spec.accumulation,
        )

    def digests(self) -> list[str]:
        """What tells this topic's inputs from others."""
        sets = [self.forget, self.retain, *([] if self.preferred_answers is None else [self.preferred_answers])]
        reference = "" if self._reference_logps is None else self._reference_logps.tobytes().hex()
        return [*(sequences.sha256() for sequences in sets), reference, repr(self.retain_loss)]

    def terms(self, step: int) -> list[LossTerm]:
        """The forget and retain term of the topic's own step ``step``."""
        rows = self.sampler.rows(step)
        preferred_rows = None
        if self.preferred_answers is not None:
            count = len(self.forget)
            variants = len(self.preferred_answers) // count
            chosen = preferred_answer(self._spec.seed, step, variants)
            preferred_rows = {row: count + row * variants + chosen for row in rows.forget}
        loss = self._spec.forget_loss
        forget = LossTerm("forget_loss", loss, self.forget_dataset, rows.forget, preferred_rows, self.name)
        return [forget] if self._spec.retain_loss is None else [forget, self.retain_term(rows.retain)]

    def retain_term(self, rows: Sequence[int] | None = None) -> LossTerm:
        """The retain loss over these rows, or over all."""
        if self._spec.retain_loss is None:
            raise ValueError("this run has no retain loss")
        rows = range(len(self.retain)) if rows is None else rows
        return LossTerm("retain_loss", self._spec.retain_loss, self.retain_dataset, rows, topic=self.name)

    def overlaps(self) -> list[Overlap]:
        """Sequences that are in both sets, token for token; each forget row once."""
        rows = {self.retain.row(i)[0].tobytes(): i for i in reversed(range(len(self.retain)))}
        shared = ((i, rows.get(self.forget.row(i)[0].tobytes())) for i in range(len(self.forget)))
        return [Overlap(i, j) for i, j in shared if j is not None]


def mean_retain_loss(topics: Sequence[TopicData]) -> float | None:
    """Nats a token over the topics' whole retain sets before unlearning, where it is known."""
    known = [topic.retain_loss for topic in topics if topic.retain_loss is not None]
    return sum(loss.total for loss in known) / sum(loss.tokens for loss in known) if known else None


def _read(path: Path, hf_config: Mapping[str, Any]) -> Sequences:
    sequences = Sequences.load(path)
    if len(sequences) == 0:
        raise ValueError(f"{path}: holds no sequence")
    sequences.check(str(path), hf_config["vocab_size"], family_of(hf_config).context(hf_config))
    return sequences
