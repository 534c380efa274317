"""A training set of MUSE as texts, and the sequences that a tokenizer makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.data.chunking import chunks
from pipeline.data.user_files import fault as fault_of

if TYPE_CHECKING:
    from megatron_ext.data.sequences import Sequences
    from pipeline.data.tokenise import Encoder


@dataclass(frozen=True)
class Texts:
    """A training set.

    Attributes:
        form: ``joined`` texts are joined and cut where the model's input is full; ``apart``: each is a sequence;
            ``asked``: each is a pair of a prompt and an answer, a sequence of which the answer is labelled
        texts: the texts or pairs
        places: what to call each text in a message
        origin: where the texts came from
    """

    form: Literal["joined", "apart", "asked"]
    texts: list[Any]
    places: list[str]
    origin: str

    @property
    def content(self) -> Any:
        """A JSON value that is the same for equal content, wherever it came from."""
        return [self.form, self.texts]

    def sequences(self, encoder: Encoder) -> tuple[Sequences, int]:
        """The set's sequences, and the number of texts that were dropped.

        Raises:
            DataError: a text cannot be used, and bad rows are errors; the message names it
        """
        from megatron_ext.data.sequences import Sequences

        kept, dropped = [], 0
        for text, place in zip(self.texts, self.places, strict=True):
            last = text[1] if self.form == "asked" else text
            fault = fault_of(last) if last.strip() else "no token: the text is blank"
            if fault:
                dropped += encoder.drop(place, fault)
            else:
                kept.append((text, place))
        if self.form == "joined":
            return chunks([text for text, _ in kept], encoder.tokenizer, encoder.max_length), dropped
        rows = []
        for text, place in kept:
            ids, unlabelled = self._encode(text, encoder)
            if len(ids) > encoder.max_length:
                dropped += encoder.drop(place, f"{len(ids)} tokens, more than max_length {encoder.max_length}")
            else:
                rows.append((ids, unlabelled))
        return Sequences.pack(rows), dropped

    def _encode(self, text: Any, encoder: Encoder) -> tuple[list[int], int]:
        """Ids of a text or pair with the end token, and how many of them at the start are not labelled."""
        tokenizer = encoder.tokenizer
        if self.form == "asked":
            given = tokenizer.encode(text[0], special=True)
            return [*given, *encoder.alone(text[1]), tokenizer.eos_id], len(given)
        return [*tokenizer.encode(text, special=True), tokenizer.eos_id], 1
