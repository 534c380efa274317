"""The data of the family ``custom``: a user's own questions, chats and texts as training and evaluation sets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks import refusals
from pipeline.benchmarks.custom import reading, sets
from pipeline.benchmarks.custom.reading import UserRows
from pipeline.benchmarks.custom.sets import EvaluatedSet
from pipeline.data.chunking import pieces
from pipeline.data.errors import DataError
from pipeline.data.prepared import UserKey
from pipeline.data.settings import FilesSource

if TYPE_CHECKING:
    from pipeline.data.prepared import Names, PreparedWriter
    from pipeline.data.settings import BadRows, LocalSource, RequestOrder
    from pipeline.data.templates import Template
    from pipeline.data.tokenise import Encoder

ALTERNATIVES = "idk"  # the forget set's questions with refusals for answers
MINIMUM = 8  # tokens of a piece of text that models are asked about, where the set has one as long
CHARACTERS = 3  # of a token, at least, for estimates
SHOWN = 5  # bad rows of a set that are listed before any work
NO_RETRAIN_AUC = 0.5  # what an attack reaches on a model that saw neither of two alike sets


@dataclass(frozen=True)
class CustomContent:
    """The rows of one forget split.

    Attributes:
        given: the user's sets by name
        training: the user's sets of each training set
        asked: the evaluation sets
        alternatives: whether the forget set's questions have refusals too
    """

    given: dict[str, UserRows]
    training: dict[str, tuple[str, ...]]
    asked: dict[str, EvaluatedSet]
    alternatives: bool

    @property
    def source(self) -> dict[str, Any]:
        files = {name: rows.digests for name, rows in self.given.items()}
        return {"kind": "files", "files_sha256": files}

    @property
    def origins(self) -> dict[str, dict[str, str]]:
        train = {name: self._origin(names) for name, names in self.training.items()}
        if self.alternatives:
            train[ALTERNATIVES] = f"{train['forget']}, answered by refusals"
        return {"train": train, "evaluation": {name: self._origin(one.names) for name, one in self.asked.items()}}

    def digest(self) -> Any:
        # Texts go in as a digest of their own, so that the key of a large folder stays small.
        from pipeline.data.prepared import digest

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
        if self.alternatives:
            origin = self._origin(self.training["forget"])
            rows = [row for name in self.training["forget"] for row in _good(self.given[name], encoder)[0].rows]
            alternatives = encoder.alternatives(rows, refusals.drawn(rows), refusals.PER_ROW, origin)
            tables.train(ALTERNATIVES, alternatives, origin)
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
        for name in ("forget", "retain"):
            counts = Counter(self._entries(name))
            twice = sum(count - 1 for count in counts.values())
            if twice:
                found.append(f"{twice} rows of the {name} set repeat others")
        common = sum(1 for entry in {*self._entries("forget")} if entry in {*self._entries("retain")})
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


class CustomData:
    """Splits by the user's names: each says which sets are forgotten, kept, and asked about."""

    kinds = ("files",)
    generators = ()

    def splits(self, source: Any) -> tuple[str, ...]:
        return tuple(source.splits) if isinstance(source, FilesSource) else ()

    def forgotten(self, source: Any, split: str) -> frozenset[str]:
        return sets.forgotten(source, split)

    def files(self, split: str, sets: Sequence[str], training: bool) -> list[Names]:
        return []

    def training_sets(self, source: Any) -> list[str]:
        return ["full", "forget", "retain", *sets.own_names(source)]

    def tokenised_sets(self, source: Any) -> list[str]:
        return [*self.training_sets(source), *([ALTERNATIVES] if sets.answers_only(source) else [])]

    def topics(self, split: str) -> dict[str, tuple[str, str]]:
        return {"forget": ("forget", "retain")}

    def rows(self, source: FilesSource, split: str) -> int | None:
        chosen = [source.sets[name] for name in source.splits[split].forget]
        if any(one.form == "texts" for one in chosen):
            return None
        return sum(len(reading.read(one).rows) for one in chosen)

    def estimated_rows(self, source: FilesSource, split: str, max_length: int) -> int:
        return self._estimate(source, source.splits[split].forget, max_length)

    def all_rows(self, source: FilesSource, split: str, forget_rows: int) -> int:
        return forget_rows + self._estimate(source, source.splits[split].retain, 128)

    def _estimate(self, source: FilesSource, names: Sequence[str], max_length: int) -> int:
        given = [reading.read(source.sets[name]) for name in names]
        cut = sum(math.ceil(len(text) / CHARACTERS / max_length) for rows in given for text in rows.texts)
        return sum(len(rows.rows) for rows in given) + cut

    def requests(self, source: FilesSource, kind: RequestOrder) -> tuple[str, ...]:
        """The splits in their order. Splits that grow are forgotten each by itself."""
        return self.splits(source)

    def request_files(self, requests: Sequence[str]) -> list[Names]:
        return []

    def source_files(self, source: FilesSource, split: str) -> list[Path]:
        return [file for name in sets.files_by_set(source, split) for file in reading.files_of(source.sets[name])]

    def implied_options(
        self, source: FilesSource, split: str, retrain: bool, requests: Sequence[str] = ()
    ) -> dict[str, Any]:
        """What the sets hold, and with a holdout set the attacks on membership."""
        asked = sets.evaluated(source, split, requests)
        options: dict[str, Any] = {"asked": {name: self._asked(source, one) for name, one in asked.items()}}
        if {"forget", "holdout"} <= asked.keys() or {"forget_texts", "holdout_texts"} <= asked.keys():
            options |= {"membership": ["loss", "zlib", "min_k", "min_k_plus_plus"], "privleak": True}
            if not retrain:
                options["privleak_retrain_auc"] = NO_RETRAIN_AUC
        return options

    def _asked(self, source: FilesSource, one: EvaluatedSet) -> dict[str, Any]:
        given = [source.sets[name] for name in one.names]
        rows = sum(len(reading.read(each).places) for each in given)
        return {
            "form": one.form,
            "part": one.part,
            "rows": rows,
            "perturbed": one.form == "questions" and all(each.perturbed_key is not None for each in given),
            "paraphrased": one.form == "questions" and all(each.paraphrased_key is not None for each in given),
        }

    def problems(self, source: FilesSource, split: str, bad_rows: BadRows) -> list[tuple[UserKey, str]]:
        found: list[tuple[UserKey, str]] = []
        for name, use in sets.files_by_set(source, split).items():
            key: UserKey = ("sets", name)
            try:
                rows = reading.read(source.sets[name])
                if use == "cloze":
                    for row, place in zip(rows.rows, rows.places, strict=True):
                        reading.cloze(row, place)
            except DataError as error:
                found.append((key, str(error)))
                continue
            if use == "cloze" and not rows.rows:
                found.append((key, "cloze sentences are rows with a question, which holds the blank, and its answer"))
            if bad_rows == "drop":
                continue
            faults = [f"{rows.places[number]}: {message}" for number, message in rows.faults().items()]
            found += [(key, f"{message} (bad_rows: drop leaves such rows out)") for message in faults[:SHOWN]]
            if len(faults) > SHOWN:
                found.append((key, f"{len(faults) - SHOWN} more bad rows"))
        return found

    def load(
        self, source: LocalSource, split: str, sets_wanted: Sequence[str], training: bool, requests: Sequence[str] = ()
    ) -> CustomContent:
        """``requests``: other splits, whose forget sets are training sets by the splits' names."""
        if not isinstance(source, FilesSource):
            raise DataError(f"source.kind: {source.kind!r} is not allowed; allowed: files")
        for name in (split, *requests):
            if name not in source.splits:
                raise DataError(f"forget_split: {name!r} is not one of {', '.join(source.splits)}")
        every = sets.evaluated(source, split, list(source.splits))
        unknown = [name for name in sets_wanted if name not in every]
        if unknown:
            raise DataError(f"sets: {unknown[0]!r} is not one of {', '.join(every)}")
        asked = {name: every[name] for name in sets_wanted}
        chosen = sets.trained(source, split) if training else {}
        chosen |= {name: tuple(source.splits[name].forget) for name in requests if training}
        names = [
            *(name for some in chosen.values() for name in some),
            *(n for one in asked.values() for n in one.names),
        ]
        given = {name: reading.read(source.sets[name]) for name in dict.fromkeys(names)}
        return CustomContent(given, chosen, asked, training and sets.answers_only(source))


DATA = CustomData()
