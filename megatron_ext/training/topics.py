"""A topic's sequences as an unlearning run reads them: checked, with what was computed of them before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron_ext.data.collate import SequenceDataset
from megatron_ext.data.reference_log_probs import load_reference
from megatron_ext.data.sampling import ForgetRetainSampler, alternative
from megatron_ext.data.sequences import Sequences
from megatron_ext.model.families import family_of
from megatron_ext.specs import Topic, UnlearnSpec
from megatron_ext.training.trainer import LossTerm


class TopicData:
    """The sequences of one topic and its batches.

    Raises ``ValueError``, naming the file, for no sequences, for sequences that the model cannot read, for cached
    numbers of other data or another model, and for alternatives that are not equally many of each forget row.
    """

    def __init__(self, topic: Topic, spec: UnlearnSpec, fingerprint: str, hf_config: Mapping[str, Any]) -> None:
        self.name, self.spec = topic.name, spec
        vocabulary, context = hf_config["vocab_size"], family_of(hf_config).context(hf_config)

        def read(path: Any) -> Sequences:
            found = Sequences.load(path)
            if len(found) == 0:
                raise ValueError(f"{path}: holds no sequence")
            found.check(str(path), vocabulary, context)
            return found

        self.forget, self.retain = read(topic.forget_data), read(topic.retain_data)
        self.preferred_answers = read(topic.preferred_answers) if topic.preferred_answers else None
        parts, references = [self.forget], [topic.reference_logps]
        if self.preferred_answers is not None:
            if len(self.preferred_answers) % len(self.forget):
                raise ValueError(
                    f"{topic.preferred_answers}: {len(self.preferred_answers)} answers are not equally many for "
                    f"each of the {len(self.forget)} rows of {topic.forget_data}"
                )
            parts.append(self.preferred_answers)
            references.append(topic.preferred_answers_logps)
        known = [load_reference(path, part, fingerprint) for path, part in zip(references, parts, strict=True) if path]
        self.reference_logps = np.concatenate(known) if len(known) == len(parts) else None
        self.forget_pool, self.retain_pool = (
            SequenceDataset(parts, self.reference_logps),
            SequenceDataset([self.retain]),
        )
        self.retain_loss: tuple[float, int] | None = None  # summed, and of how many tokens
        if topic.retain_reference_logps:
            log_probs = load_reference(topic.retain_reference_logps, self.retain, fingerprint)
            self.retain_loss = -float(log_probs.sum()), int(self.retain.label_counts.sum())
        self.pairs = ForgetRetainSampler(
            len(self.forget),
            len(self.retain) if spec.retain_loss else 0,
            spec.batching.global_batch,
            spec.epochs,
            spec.seed,
        )

    def digests(self) -> list[str]:
        """What tells this topic's inputs from others."""
        found = [self.forget.sha256(), self.retain.sha256()]
        found += [self.preferred_answers.sha256()] if self.preferred_answers is not None else []
        return [
            *found,
            "" if self.reference_logps is None else self.reference_logps.tobytes().hex(),
            repr(self.retain_loss),
        ]

    def terms(self, step: int) -> list[LossTerm]:
        """The forget and retain term of the topic's own step ``step``."""
        forget, retain = self.pairs.rows(step)
        preferred_rows = None
        if self.preferred_answers is not None:
            count = len(self.forget)
            variants = len(self.preferred_answers) // count
            chosen = alternative(self.spec.seed, step, variants)
            preferred_rows = {row: count + row * variants + chosen for row in forget}
        found = [LossTerm("forget_loss", self.spec.forget_loss, self.forget_pool, forget, preferred_rows, self.name)]
        return found + ([self.retain_term(retain)] if self.spec.retain_loss is not None else [])

    def retain_term(self, rows: Sequence[int] | None = None) -> LossTerm:
        """The retain loss over these rows, or over all."""
        rows = range(len(self.retain)) if rows is None else rows
        return LossTerm("retain_loss", self.spec.retain_loss, self.retain_pool, rows, topic=self.name)

    def overlap(self) -> list[tuple[int, int]]:
        """(forget row, retain row) of sequences that are in both sets, token for token; each forget row once."""
        rows = {self.retain.row(i)[0].tobytes(): i for i in reversed(range(len(self.retain)))}
        found = ((i, rows.get(self.forget.row(i)[0].tobytes())) for i in range(len(self.forget)))
        return [(i, j) for i, j in found if j is not None]
