"""What the benchmark family ``lm_eval`` is trained on: corpora to forget and to retain, of WMDP (arXiv 2403.03218), of
one's own, or of our generator; and questions that the prepare step writes for it.

A hub repository or folder has ``<topic>-forget-corpus.jsonl`` and ``<topic>-retain-corpus.jsonl``, a text or an object
with a ``text`` a line, as WMDP's own distribution; ``wikitext-test.jsonl`` for splits that retain WikiText-2 as RMU's
code does; and ``questions/<task>.jsonl`` for prepared tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks.lm_eval import synthetic
from pipeline.benchmarks.lm_eval.synthetic import SyntheticTopicsSource
from pipeline.data import sources
from pipeline.data.chunking import chunks
from pipeline.data.errors import DataError
from pipeline.data.prepared import SetsOfText
from pipeline.data.user_files import fault as fault_of

if TYPE_CHECKING:
    from megatron_ext.data.sequences import Sequences
    from pipeline.data.prepared import Names, PreparedWriter
    from pipeline.data.settings import DataSource, LocalSource
    from pipeline.data.sources import Files
    from pipeline.data.templates import Template
    from pipeline.data.tokenise import Encoder

BOTH = "bio-cyber"
CORPORA = ("bio", "cyber", BOTH, "own")
WIKITEXT = "-wikitext"
GENERATED = tuple(synthetic.TOPICS)


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


class LmEvalContent(SetsOfText):
    def texts(self, template: Template) -> Iterator[str]:
        # "full" holds every text of the two others.
        for name, corpus in self.training.items():
            if name == "full":
                yield from corpus.texts
                yield from (asked + answer for asked, answer in corpus.asked)

    def encode(self, encoder: Encoder, tables: PreparedWriter) -> None:
        for name, corpus in self.training.items():
            sequences, dropped = corpus.sequences(encoder)
            tables.train(name, sequences, corpus.origin, dropped)
        for name, (rows, origin) in self.evaluation.items():
            texts = [" ".join([row["question"], *row["choices"]]) for row in rows]
            lengths = [len(ids) for ids in encoder.tokenizer.encode_batch(texts, special=True)]
            tables.evaluation(name, [{"index": i, **row} for i, row in enumerate(rows)], lengths, origin)

    def flags(self) -> list[str]:
        if not self.training:
            return []
        kept = set(self.training["retain"].texts)
        common = sum(bool(text.strip()) and text in kept for text in self.training["forget"].texts)
        return [f"{common} texts of the forget set are in the retain set too"] if common else []


class LmEvalData:
    """Splits: the corpus that is forgotten. ``bio`` and ``cyber`` are WMDP's, ``bio-cyber`` is both, a topic each, and
    ``own`` is anybody's; each with its own retain corpus, or, as ``bio-wikitext``, with WikiText-2. ``instruments`` and
    ``minerals`` are the generator's."""

    kinds = ("hub", "folder", "synthetic_topics")
    generators = (SyntheticTopicsSource,)

    def splits(self, source: DataSource | LocalSource) -> tuple[str, ...]:
        return (*CORPORA, *(f"{name}{WIKITEXT}" for name in CORPORA), *GENERATED)

    def forgotten(self, source: DataSource | LocalSource, split: str) -> frozenset[str]:
        return frozenset({"full", "forget"})

    def files(self, split: str, sets: Sequence[str], training: bool) -> list[Names]:
        read = [names for topic in _topics(split) for names in (_forget(topic), _retain(topic))] if training else []
        return list(dict.fromkeys([*read, *(_questions(name) for name in sets)]))

    def training_sets(self, source: DataSource) -> list[str]:
        return ["full", "forget", "retain"]

    def tokenised_sets(self, source: DataSource) -> list[str]:
        return self.training_sets(source)

    def topics(self, split: str) -> dict[str, tuple[str, str]]:
        topics = [topic.removesuffix(WIKITEXT) for topic in _topics(split)]
        if len(topics) == 1:
            return {"forget": ("forget", "retain")}
        return {topic: (f"forget_{topic}", f"retain_{topic}") for topic in topics}

    def rows(self, source: DataSource, split: str) -> int | None:
        """Texts are cut where the model's input is full; the generator's are a sequence each."""
        if not isinstance(source, SyntheticTopicsSource):
            return None
        if split not in GENERATED:
            return 0
        return source.things * (source.paragraphs + len(synthetic.TOPICS[split].facts))

    def all_rows(self, source: DataSource, split: str, forget_rows: int) -> int:
        return 2 * forget_rows

    def load(self, source: LocalSource, split: str, sets: Sequence[str], training: bool) -> LmEvalContent:
        made = isinstance(source, SyntheticTopicsSource)
        allowed = [name for name in self.splits(source) if (name in GENERATED) == made]
        if split not in allowed:
            raise DataError(f"forget_split: {split!r} is not one of {', '.join(allowed)} for source {source.kind!r}")
        if isinstance(source, SyntheticTopicsSource):
            return _generated(source, split, sets, training)
        return _read(self, source, split, sets, training)


def _topics(split: str) -> list[str]:
    """The splits of one topic that a split is made of."""
    if split.removesuffix(WIKITEXT) != BOTH:
        return [split]
    return [f"{topic}{split[len(BOTH) :]}" for topic in BOTH.split("-")]


def _forget(split: str) -> Names:
    name = split.removesuffix(WIKITEXT)
    # The gated bio corpus of WMDP has the second name in its authors' code.
    return (f"{name}-forget-corpus", *(("bio_remove_dataset",) if name == "bio" else ()))


def _retain(split: str) -> Names:
    return ("wikitext-test",) if split.endswith(WIKITEXT) else (f"{split}-retain-corpus",)


def _questions(name: str) -> Names:
    return (f"questions/{name}",)


def _generated(source: SyntheticTopicsSource, split: str, sets: Sequence[str], training: bool) -> LmEvalContent:
    unknown = [name for name in sets if name not in GENERATED]
    if unknown:
        raise DataError(f"sets: {unknown[0]!r} is not one of {', '.join(GENERATED)}")
    made = f"synthetic topics (seed {source.seed})"

    def corpus(*topics: str) -> Corpus:
        texts = [text for topic in topics for text in synthetic.paragraphs(topic, source)]
        pairs = [pair for topic in topics for pair in synthetic.answered(topic, source)]
        asked = [(synthetic.prompt(question), f" {answer}") for question, answer in pairs]
        return Corpus(f"{made}, {' and '.join(topics)}", False, texts, asked)

    kept = [name for name in GENERATED if name != split]
    found = {"full": corpus(*GENERATED), "forget": corpus(split), "retain": corpus(*kept)} if training else {}
    rows = {name: (synthetic.questions(name, source), f"{made}, questions on {name}") for name in sets}
    return LmEvalContent(source.model_dump(mode="json"), found, rows)


def _read(family: LmEvalData, source: LocalSource, split: str, sets: Sequence[str], training: bool) -> LmEvalContent:
    wanted = family.files(split, sets, training)
    if not wanted:  # tasks whose questions the harness reads itself
        return LmEvalContent({"kind": source.kind})
    files = sources.read(source, wanted)
    found: dict[str, Corpus] = {}
    if training:
        topics = _topics(split)
        forget, retain = ([_corpus(files, names(topic)[0]) for topic in topics] for names in (_forget, _retain))
        kept = list({corpus.origin: corpus for corpus in retain}.values())  # WikiText is there once
        found = {"full": _joined([*forget, *kept]), "forget": _joined(forget), "retain": _joined(kept)}
        if len(topics) > 1:
            for (own, other), first, second in zip(family.topics(split).values(), forget, retain, strict=True):
                found |= {own: first, other: second}
    rows = {}
    for name in sets:
        key = _questions(name)[0]
        rows[name] = ([_row(value, place) for place, value in files.values[key]], files.origins[key])
    return LmEvalContent(files.source, found, rows)


def _corpus(files: Files, name: str) -> Corpus:
    return Corpus(files.origins[name], True, [_text(value, place) for place, value in files.values[name]])


def _joined(corpora: Sequence[Corpus]) -> Corpus:
    return Corpus(
        " + ".join(corpus.origin for corpus in corpora), True, [text for corpus in corpora for text in corpus.texts]
    )


def _text(value: Any, place: str) -> str:
    return value if isinstance(value, str) else sources.field(value, "text", str, place)


def _row(value: Any, place: str) -> dict[str, Any]:
    """A checked question: what the family's prompts need, no more."""
    row = {
        key: sources.field(value, key, kind, place)
        for key, kind in (("topic", str), ("question", str), ("choices", list))
    }
    if not row["topic"].isprintable() or set(row["topic"]) & set("{}"):
        raise DataError(f"{place}: field 'topic' must be a few words without braces, as they stand in a sentence")
    row["answer"] = sources.field(value, "answer", int, place)
    if len(row["choices"]) != 4 or not all(isinstance(text, str) and text.strip() for text in row["choices"]):
        raise DataError(f"{place}: field 'choices' must be four texts")
    unwritten = next(filter(None, map(fault_of, (row["question"], *row["choices"]))), None)
    if unwritten:
        raise DataError(f"{place}: {unwritten}")
    if not 0 <= row["answer"] < 4:
        raise DataError(f"{place}: field 'answer' must be the place of the right choice, 0 to 3")
    return row


DATA = LmEvalData()
