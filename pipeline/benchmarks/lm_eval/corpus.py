"""Texts and answered questions that a model of the family ``lm_eval`` is trained on, as sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.data.chunking import chunks
from pipeline.data.user_files import fault as fault_of

if TYPE_CHECKING:
    from megatron_ext.data.sequences import Sequences
    from pipeline.data.tokenise import Encoder


@dataclass(frozen=True)
class Corpus:
    """Texts of a training set. ``joined`` ones are cut where the model's input is full, others are a sequence each;
    ``asked``: pairs of a prompt and an answer, a sequence each, of which the answer is labelled."""

    origin: str
    joined: bool
    texts: list[str]
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def content(self) -> Any:
        """A JSON value that is the same for equal content, wherever it came from."""
        return [self.joined, self.texts, self.asked]

    def sequences(self, encoder: Encoder) -> tuple[Sequences, int]:
        """The set's sequences, and the number of texts that were dropped.

        Raises:
            DataError: a text is too long, and bad rows are errors; the message names it
        """
        from megatron_ext.data.sequences import Sequences

        tokenizer = encoder.tokenizer
        if self.joined:
            texts = [text for text in self.texts if text.strip()]
            faults = {i: found for i, text in enumerate(texts) if (found := fault_of(text))}
            for i, message in faults.items():
                encoder.drop(f"{self.origin}, text {i}", message)
            kept_texts = [text for i, text in enumerate(texts) if i not in faults]
            return chunks(kept_texts, tokenizer, encoder.max_length), len(self.texts) - len(kept_texts)
        # Ids, how many of them at the start are not labelled, and what to call the text in a message.
        rows: list[tuple[list[int], int, str]] = []
        for i, text in enumerate(self.texts):
            rows.append(([*tokenizer.encode(text, special=True), tokenizer.eos_id], 1, f"text {i}"))
        for i, (asked, answer) in enumerate(self.asked):
            given = tokenizer.encode(asked, special=True)
            rows.append(([*given, *encoder.alone(answer), tokenizer.eos_id], len(given), f"question {i}"))
        kept, dropped = [], 0
        for ids, unlabelled, place in rows:
            if len(ids) > encoder.max_length:
                fault = f"{len(ids)} tokens, more than max_length {encoder.max_length}"
                dropped += encoder.drop(f"{self.origin}, {place}", fault)
            else:
                kept.append((ids, unlabelled))
        return Sequences.pack(kept), dropped
