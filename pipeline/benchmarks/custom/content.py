"""What a user's sets become: tokenised training sets, and the records that models are asked about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks import refusals
from pipeline.benchmarks.custom import reading
from pipeline.benchmarks.custom.reading import UserRows
from pipeline.benchmarks.custom.sets import EvaluatedSet
from pipeline.data.chunking import pieces
from pipeline.data.prepared import digest

if TYPE_CHECKING:
    from pipeline.data.prepared import PreparedWriter
    from pipeline.data.templates import Template
    from pipeline.data.tokenise import Encoder

MINIMUM = 8  # tokens of a piece of text that models are asked about, where the set has one as long


@dataclass(frozen=True)
class CustomContent:
    """The rows of one forget split.

    Attributes:
        given: the user's sets by name
        training: the user's sets of each training set
        asked: the evaluation sets
        alternatives: the sets of refusals, with the training set whose questions each answers
    """

    given: dict[str, UserRows]
    training: dict[str, tuple[str, ...]]
    asked: dict[str, EvaluatedSet]
    alternatives: dict[str, str]

    @property
    def source(self) -> dict[str, Any]:
        files = {name: rows.digests for name, rows in self.given.items()}
        return {"kind": "files", "files_sha256": files}

    @property
    def origins(self) -> dict[str, dict[str, str]]:
        train = {name: self._origin(names) for name, names in self.training.items()}
        train |= {name: f"{train[of]}, answered by refusals" for name, of in self.alternatives.items()}
        return {"train": train, "evaluation": {name: self._origin(one.names) for name, one in self.asked.items()}}

    def digest(self) -> Any:
        return {
            "sets": {name: digest(rows.content) for name, rows in self.given.items()},
            "training": self.training,
            "evaluation": {name: [one.form, one.names] for name, one in self.asked.items()},
        }

    def texts(self, template: Template) -> Iterator[str]:
        for name in dict.fromkeys(name for names in self.training.values() for name in names):
            rows = self.given[name]
            yield from (template.text(row.question, row.answer) for row in rows.rows)
            yield from rows.texts

    def encode(self, encoder: Encoder, tables: PreparedWriter) -> None:
        from megatron_ext.data.sequences import Sequences

        for name, names in self.training.items():
            kept: list[tuple[list[int], int]] = []
            dropped = 0
            for one in names:
                found, bad = _labelled(self.given[one], encoder)
                kept += found
                dropped += bad
            tables.train(name, Sequences.pack(kept), self._origin(names), dropped)
        for name, of in self.alternatives.items():
            origin = self._origin(self.training[of])
            rows = [row for one in self.training[of] for row in _good(self.given[one], encoder)[0].rows]
            alternatives = encoder.alternatives(rows, refusals.drawn(rows), refusals.PER_ROW, origin)
            tables.train(name, alternatives, origin)
        for name, asked in self.asked.items():
            self._encode_asked(name, asked, encoder, tables)

    def _encode_asked(self, name: str, asked: EvaluatedSet, encoder: Encoder, tables: PreparedWriter) -> None:
        records: list[dict[str, Any]] = []
        dropped, index = 0, 0
        for one in asked.names:
            rows, bad = _good(self.given[one], encoder)
            dropped += bad
            if asked.form == "questions":
                found, bad = encoder.evaluation(rows.rows, rows.origin, rows.places)
            else:
                found, bad = (_pieces if asked.form == "texts" else _cloze)(rows, encoder)
            dropped += bad
            records += [{**record, "index": index + record["index"]} for record in found]
            index += len(rows.places) if asked.form != "texts" else len(found)
        if asked.form == "texts":
            long = [record for record in records if len(record["ids"]) >= MINIMUM]
            records = long or records
        lengths = [
            len(record["ids"])
            if "ids" in record
            else len(record["prompt_ids"]) + sum(map(len, record["targets"].values()))
            for record in records
        ]
        tables.evaluation(name, records, lengths, self._origin(asked.names), dropped)

    def flags(self) -> list[str]:
        if not self.training:
            return []
        found = []
        entries = {name: Counter(self._entries(name)) for name in ("forget", "retain")}
        for name, counts in entries.items():
            twice = counts.total() - len(counts)
            if twice:
                found.append(f"{twice} rows of the {name} set repeat others")
        common = len(entries["forget"].keys() & entries["retain"].keys())
        if common:
            found.append(f"{common} rows of the forget set are in the retain set too")
        return found

    def _entries(self, name: str) -> list[str]:
        """What a training set asks or says, but for case and white space."""
        given = [self.given[one] for one in self.training[name]]
        entries = [text for rows in given for text in (*(row.question for row in rows.rows), *rows.texts)]
        return [" ".join(text.casefold().split()) for text in entries]

    def _origin(self, names: Sequence[str]) -> str:
        return " + ".join(self.given[name].origin for name in names)


def _good(rows: UserRows, encoder: Encoder) -> tuple[UserRows, int]:
    """The rows without those that are wrong by themselves, and how many these are.

    Raises:
        DataError: one is wrong, and bad rows are errors
    """
    faults = rows.faults()
    dropped = sum(encoder.drop(rows.places[number], message) for number, message in faults.items())
    keep = [number for number in range(len(rows.places)) if number not in faults]
    if not faults:
        return rows, 0
    return (
        UserRows(
            rows.origin,
            tuple(rows.rows[i] for i in keep if rows.rows),
            tuple(rows.texts[i] for i in keep if rows.texts),
            tuple(rows.places[i] for i in keep),
            rows.digests,
        ),
        dropped,
    )


def _labelled(given: UserRows, encoder: Encoder) -> tuple[list[tuple[list[int], int]], int]:
    rows, dropped = _good(given, encoder)
    if rows.rows:
        kept, bad = encoder.labelled(rows.rows, rows.places)
        return kept, dropped + bad
    cut = [piece for text in rows.texts for piece in pieces(text, encoder.tokenizer, encoder.max_length)]
    return cut, dropped


def _pieces(rows: UserRows, encoder: Encoder) -> tuple[list[dict[str, Any]], int]:
    """A record for each piece of the texts, as they are trained."""
    records: list[dict[str, Any]] = []
    for text, place in zip(rows.texts, rows.places, strict=True):
        document = place.removeprefix(rows.origin).lstrip("/, ") or Path(place).name
        for ids, given in pieces(text, encoder.tokenizer, encoder.max_length):
            records.append({"index": len(records), "document": document, "ids": ids, "given": given})
    return records, 0


def _cloze(rows: UserRows, encoder: Encoder) -> tuple[list[dict[str, Any]], int]:
    """A record for each sentence: its start, without a template, and what fills the blank."""
    records, dropped = [], 0
    for index, (row, place) in enumerate(zip(rows.rows, rows.places, strict=True)):
        sentence = reading.cloze(row, place)
        prompt = encoder.tokenizer.encode(sentence.question, special=True)
        target = encoder.alone(f" {sentence.answer}")
        if not prompt or not target or len(prompt) + len(target) > encoder.max_length:
            dropped += encoder.drop(place, f"{len(prompt) + len(target)} tokens, allowed: 2 to {encoder.max_length}")
            continue
        texts = {"question": sentence.question, "answer": sentence.answer}
        records.append({"index": index, **texts, "prompt_ids": prompt, "targets": {"answer": target}})
    return records, dropped
