"""What the benchmark family ``lm_eval`` is trained on: corpora to forget and to retain, of WMDP (arXiv 2403.03218), of
one's own, or of our generator; and questions that the prepare step writes for it.

A hub repository or folder has ``<topic>-forget-corpus.jsonl`` and ``<topic>-retain-corpus.jsonl``, a text or an object
with a ``text`` a line, as WMDP's own distribution; ``wikitext-test.jsonl`` for splits that retain WikiText-2 as RMU's
code does; and ``questions/<task>.jsonl`` for prepared tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pipeline.benchmarks.lm_eval import synthetic
from pipeline.benchmarks.lm_eval.corpus import Corpus
from pipeline.benchmarks.lm_eval.synthetic import SyntheticTopicsSource
from pipeline.data import sources
from pipeline.data.errors import DataError
from pipeline.data.prepared import SetsOfText
from pipeline.data.settings import RequestOrder
from pipeline.data.user_files import fault as fault_of

if TYPE_CHECKING:
    from pipeline.data.prepared import Names, PreparedWriter
    from pipeline.data.settings import DataSource, LocalSource
    from pipeline.data.sources import Files
    from pipeline.data.templates import Template
    from pipeline.data.tokenise import Encoder

BOTH = "bio-cyber"
CORPORA = ("bio", "cyber", BOTH, "own")
WIKITEXT = "-wikitext"
IN_TURN = BOTH.split("-")  # what can be forgotten one after the other


class LmEvalContent(SetsOfText):
    def texts(self, template: Template) -> Iterator[str]:
        # "full" holds every text of the others.
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
    ``own`` is anybody's; each with its own retain corpus, or, as ``bio-wikitext``, with WikiText-2. Others are the
    generator's topics: what is not forgotten is retained.

    Several requests to forget are topics, or topics together; the retain corpora of all are kept from the first on."""

    kinds = ("hub", "folder", "synthetic_topics")
    generators = (SyntheticTopicsSource,)

    def splits(self, source: DataSource | LocalSource) -> tuple[str, ...]:
        if isinstance(source, SyntheticTopicsSource):
            return synthetic.topics(source)
        return (*CORPORA, *(f"{name}{WIKITEXT}" for name in CORPORA))

    def forgotten(self, source: DataSource | LocalSource, split: str) -> frozenset[str]:
        return frozenset({"full", "forget"})

    def files(self, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()) -> list[Names]:
        topics = _all_topics(split, requests) if training else []
        read = [names for topic in topics for names in (_forget(topic), _retain(topic))]
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
        topics = _topics(split)
        if not {*topics} <= {*synthetic.topics(source)}:
            return 0
        return sum(source.things * (source.paragraphs + len(synthetic.TOPICS[topic].facts)) for topic in topics)

    def requests(self, source: DataSource | LocalSource, split: str, order: RequestOrder) -> tuple[str, ...]:
        """``split``, then the other topics in their order, or with them; one of the generator's topics is kept."""
        end = WIKITEXT if split.endswith(WIKITEXT) else ""
        own = split.removesuffix(end)
        made = isinstance(source, SyntheticTopicsSource)
        known = [*synthetic.topics(source)] if isinstance(source, SyntheticTopicsSource) else IN_TURN
        if own not in known:
            return (split,)
        topics = [own, *(name for name in known if name != own)][: len(known) - made]
        if order == "scalability":
            topics = ["-".join(topics[: number + 1]) for number in range(len(topics))]
        return tuple(f"{name}{end}" for name in topics)

    def kept_by(self, split: str, requests: Sequence[str]) -> str:
        return split

    def stated_rows(self, request: str, splits: Mapping[str, int]) -> int | None:
        return splits.get(request)

    def request_options(self, requests: Sequence[str]) -> dict[str, Any]:
        """None: every model is asked all tasks."""
        return {}

    def all_rows(self, source: DataSource, split: str, forget_rows: int) -> int:
        return 2 * forget_rows

    def load(
        self, source: LocalSource, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()
    ) -> LmEvalContent:
        """``requests``: other splits, whose forget sets are training sets by the splits' names."""
        allowed = self.splits(source)
        if split not in allowed:
            raise DataError(f"forget_split: {split!r} is not one of {', '.join(allowed)} for source {source.kind!r}")
        known = [name for order in get_args(RequestOrder) for name in self.requests(source, split, order)[1:]]
        unknown = [name for name in requests if name not in known]
        if unknown:
            raise DataError(f"requests: {unknown[0]!r} is not one of {', '.join(known) or 'none'} after {split!r}")
        if isinstance(source, SyntheticTopicsSource):
            return _generated(source, split, sets, training, requests)
        return _read(self, source, split, sets, training, requests)


def _topics(split: str) -> list[str]:
    """The splits of one topic that a split is made of."""
    end = WIKITEXT if split.endswith(WIKITEXT) else ""
    return [f"{topic}{end}" for topic in split.removesuffix(end).split("-")]


def _all_topics(split: str, requests: Sequence[str]) -> list[str]:
    """The splits of one topic that a split and further requests are made of, each once."""
    return list(dict.fromkeys(topic for name in (split, *requests) for topic in _topics(name)))


def _forget(split: str) -> Names:
    name = split.removesuffix(WIKITEXT)
    # The gated bio corpus of WMDP has the second name in its authors' code.
    return (f"{name}-forget-corpus", *(("bio_remove_dataset",) if name == "bio" else ()))


def _retain(split: str) -> Names:
    return ("wikitext-test",) if split.endswith(WIKITEXT) else (f"{split}-retain-corpus",)


def _questions(name: str) -> Names:
    return (f"questions/{name}",)


def _generated(
    source: SyntheticTopicsSource, split: str, sets: Sequence[str], training: bool, requests: Sequence[str]
) -> LmEvalContent:
    made_topics = synthetic.topics(source)
    unknown = [name for name in sets if name not in made_topics]
    if unknown:
        raise DataError(f"sets: {unknown[0]!r} is not one of {', '.join(made_topics)}")
    made = f"synthetic topics (seed {source.seed})"

    def corpus(*topics: str) -> Corpus:
        texts = [text for topic in topics for text in synthetic.paragraphs(topic, source)]
        pairs = [pair for topic in topics for pair in synthetic.answered(topic, source)]
        asked = [(synthetic.prompt(question), f" {answer}") for question, answer in pairs]
        return Corpus(f"{made}, {' and '.join(topics)}", False, texts, asked)

    found = {}
    if training:
        kept = [name for name in made_topics if name not in _all_topics(split, requests)]
        found = {"full": corpus(*made_topics), "forget": corpus(split), "retain": corpus(*kept)}
        found |= {request: corpus(*_topics(request)) for request in requests}
    rows = {name: (synthetic.questions(name, source), f"{made}, questions on {name}") for name in sets}
    return LmEvalContent(source.model_dump(mode="json"), found, rows)


def _read(
    family: LmEvalData,
    source: LocalSource,
    split: str,
    sets: Sequence[str],
    training: bool,
    requests: Sequence[str],
) -> LmEvalContent:
    wanted = family.files(split, sets, training, requests)
    if not wanted:  # tasks whose questions the harness reads itself
        return LmEvalContent({"kind": source.kind})
    files = sources.read(source, wanted)
    found: dict[str, Corpus] = {}
    if training:
        topics, own = _all_topics(split, requests), _topics(split)
        forget, retain = ({topic: _corpus(files, names(topic)[0]) for topic in topics} for names in (_forget, _retain))
        kept = list({corpus.origin: corpus for corpus in retain.values()}.values())  # WikiText is there once
        found = {
            "full": _joined([*forget.values(), *kept]),
            "forget": _joined([forget[topic] for topic in own]),
            "retain": _joined(kept),
            **{request: _joined([forget[topic] for topic in _topics(request)]) for request in requests},
        }
        if len(own) > 1:
            for topic, (first, second) in zip(own, family.topics(split).values(), strict=True):
                found |= {first: forget[topic], second: retain[topic]}
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
