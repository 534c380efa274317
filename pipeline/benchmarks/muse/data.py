"""MUSE's data (arXiv 2407.06460): news or books as raw text, from its files or our generator.

Files have the names of the hub's repositories (``muse-bench/MUSE-News``, ``-Books``) and of the authors' code. Releases
differ in what they call the retain set of an evaluation: ``retain2`` or ``retain``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pipeline.benchmarks.muse import synthetic
from pipeline.benchmarks.muse.passages import FEWEST, REQUESTS, as_rows, passages
from pipeline.benchmarks.muse.prompt import prompt
from pipeline.benchmarks.muse.synthetic import SyntheticNewsSource
from pipeline.benchmarks.muse.texts import Texts
from pipeline.benchmarks.request_sets import REQUEST, request_set
from pipeline.data import sources
from pipeline.data.errors import DataError
from pipeline.data.prepared import SetsOfText
from pipeline.data.user_files import fault

if TYPE_CHECKING:
    from pipeline.data.prepared import Names, PreparedWriter
    from pipeline.data.settings import DataSource, LocalSource, RequestOrder
    from pipeline.data.sources import Files
    from pipeline.data.templates import Template
    from pipeline.data.tokenise import Encoder

# Evaluation set -> its files: of each the names that it may have, of which the first that is there is read.
EVALUATED: dict[str, tuple[Names, ...]] = {
    "verbmem": (("verbmem/forget",),),
    "knowmem_forget": (("knowmem/forget_qa",), ("knowmem/forget_qa_icl",)),
    "knowmem_retain": (
        ("knowmem/retain2_qa", "knowmem/retain_qa"),
        ("knowmem/retain2_qa_icl", "knowmem/retain_qa_icl"),
    ),
    "privleak_forget": (("privleak/forget",),),
    "privleak_holdout": (("privleak/holdout",),),
}
EVALUATED |= {request_set(number): ((f"sust/forget_{number}",),) for number in range(2, REQUESTS + 1)}
FIELDS = {"verbmem": ("prompt", "gt"), "knowmem": ("question", "answer")}
# Where a release has one retain set, it is both the one that unlearning trains on and the one that is evaluated.
RETAIN: Names = ("raw/retain1", "raw/retain", "raw/retain2")
EVALUATED_RETAIN: Names = ("raw/retain2", "raw/retain", "raw/retain1")
EVERYTHING: Names = ("train/forget", "scal/forget_4", "raw/forget")  # that is ever asked to be forgotten


class MuseContent(SetsOfText):
    """Everything that was read or made for one forget split."""

    def texts(self, template: Template) -> Iterator[str]:
        # "full" holds every text of the others that are left out.
        for name, part in self.training.items():
            if name in ("full", "background", "practice"):
                yield from ("".join(text) if part.form == "asked" else text for text in part.texts)

    def encode(self, encoder: Encoder, tables: PreparedWriter) -> None:
        for name, part in self.training.items():
            sequences, dropped = part.sequences(encoder)
            tables.train(name, sequences, part.origin, dropped)
        for name, (rows, origin) in self.evaluation.items():
            texts = [_whole(row) for row in rows]
            lengths = [len(ids) for ids in encoder.tokenizer.encode_batch(texts, special=True)]
            tables.evaluation(name, [{"index": i, **row} for i, row in enumerate(rows)], lengths, origin)

    def flags(self) -> list[str]:
        if not self.training:
            return []
        kept = set(self.training["retain"].texts)
        common = sum(bool(text.strip()) and text in kept for text in self.training["forget"].texts)
        return [f"{common} texts of the forget set are in the retain set too"] if common else []


class MuseData:
    """``forget``: MUSE's own forget set; ``sust-k``: the k-th of four disjoint ones; ``scal-k``: k of them together.

    Evaluation sets are the same for every split: they ask about ``forget``, which is ``sust-1`` and ``scal-1``, and
    ``request_k`` has passages of ``sust-k``.
    """

    kinds = ("hub", "folder", "synthetic_news")
    generators = (SyntheticNewsSource,)

    def splits(self, source: DataSource | LocalSource) -> tuple[str, ...]:
        return ("forget", *(f"{kind}-{k}" for kind in ("scal", "sust") for k in range(1, REQUESTS + 1)))

    def forgotten(self, source: DataSource | LocalSource, split: str) -> frozenset[str]:
        return frozenset({"full", "forget"})

    def files(self, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()) -> list[Names]:
        names: list[Names] = []
        if training:
            names += [_forget(split), EVERYTHING, RETAIN, EVALUATED_RETAIN, *map(_forget, requests)]
        return list(dict.fromkeys([*names, *(file for name in sets for file in EVALUATED[name])]))

    def training_sets(self, source: DataSource) -> list[str]:
        return [
            "full",
            "forget",
            "retain",
            *(["background", "practice"] if isinstance(source, SyntheticNewsSource) else []),
        ]

    def tokenised_sets(self, source: DataSource) -> list[str]:
        return self.training_sets(source)

    def topics(self, split: str) -> dict[str, tuple[str, str]]:
        return {"forget": ("forget", "retain")}

    def requests(self, source: DataSource | LocalSource, split: str, order: RequestOrder) -> tuple[str, ...]:
        """``forget`` is the first of either order by another name."""
        return "forget", *(f"{order[:4]}-{k}" for k in range(2, REQUESTS + 1))

    def kept_by(self, split: str, requests: Sequence[str]) -> str:
        """What is retained is in none of the requests."""
        return split

    def stated_rows(self, request: str, splits: Mapping[str, int]) -> int | None:
        return splits.get(request)

    def request_options(self, requests: Sequence[str]) -> dict[str, Any]:
        return {"requests": 1 + len(requests)} if requests else {}

    def rows(self, source: DataSource, split: str) -> int | None:
        """An article of our generator is a sequence; raw text is cut by a tokenizer, so its rows are unknown."""
        if not isinstance(source, SyntheticNewsSource):
            return None
        wanted = _request_numbers(split)
        return len(wanted) * source.forget_stories * synthetic.ARTICLES if max(wanted) <= source.requests else 0

    def all_rows(self, source: DataSource, split: str, forget_rows: int) -> int:
        return 3 * forget_rows

    def load(
        self, source: LocalSource, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()
    ) -> MuseContent:
        """``requests``: other splits, whose forget sets are training sets by the splits' names."""
        for key, name in (("forget_split", split), *(("requests", request) for request in requests)):
            if name not in self.splits(source):
                raise DataError(f"{key}: {name!r} is not one of {', '.join(self.splits(source))}")
        unknown = [name for name in sets if name not in EVALUATED]
        if unknown:
            raise DataError(f"sets: {unknown[0]!r} is not one of {', '.join(EVALUATED)}")
        if isinstance(source, SyntheticNewsSource):
            return _generated(source, split, sets, training, requests)
        wanted = self.files(split, sets, training, requests)
        return _read(sources.read(source, wanted), split, sets, training, requests)


def _forget(split: str) -> Names:
    """The names of a split's file."""
    if split == "forget":
        return ("raw/forget", "scal/forget_1", "sust/forget_1")
    kind, _, number = split.partition("-")
    return (f"{kind}/forget_{number}",)


def _request_numbers(split: str) -> range:
    """The requests that a split is made of, counted from 1."""
    if split == "forget":
        return range(1, 2)
    kind, _, number = split.partition("-")
    return range(1 if kind == "scal" else int(number), int(number) + 1)


def _read(files: Files, split: str, sets: Sequence[str], training: bool, requests: Sequence[str]) -> MuseContent:
    """What the files hold, checked."""
    found: dict[str, Texts] = {}
    if training:
        forget, retain = (_joined(files, name) for name in (_forget(split)[0], RETAIN[0]))
        every = [_joined(files, EVERYTHING[0]), retain]
        if files.origins[EVALUATED_RETAIN[0]] != files.origins[RETAIN[0]]:
            every.append(_joined(files, EVALUATED_RETAIN[0]))
        full = Texts(
            "joined",
            [text for part in every for text in part.texts],
            [place for part in every for place in part.places],
            " + ".join(part.origin for part in every),
        )
        found = {"full": full, "forget": forget, "retain": retain}
        found |= {request: _joined(files, _forget(request)[0]) for request in requests}
    evaluation = {}
    for name in sets:
        first, *shots = (names[0] for names in EVALUATED[name])
        rows = _rows(files, name, first)
        if shots:
            answered = [_row(value, name, place) for place, value in files.values[shots[0]]]
            given = [[row["question"], row["answer"]] for row in answered]
            rows = [{**row, "shots": given} for row in rows]
        evaluation[name] = (rows, files.origins[first])
    return MuseContent(files.source, found, evaluation)


def _rows(files: Files, name: str, file: str) -> list[dict[str, Any]]:
    """The rows of an evaluation set in a file, at least one."""
    if name.startswith(REQUEST):
        # A text that cannot be written is named where it is trained.
        found = as_rows(passages([text for one in files.values[file] if not fault(text := _text(one[1], one[0]))]))
    else:
        found = [_row(value, name, place) for place, value in files.values[file]]
    if not found:
        raise DataError(
            f"{files.origins[file]}: no {f'text of {FEWEST} words' if name.startswith(REQUEST) else 'rows'}"
        )
    return found


def _joined(files: Files, name: str) -> Texts:
    places = [place for place, _ in files.values[name]]
    return Texts("joined", [_text(value, place) for place, value in files.values[name]], places, files.origins[name])


def _text(value: Any, place: str) -> str:
    """A text by itself, or the field ``text`` of an object."""
    return value if isinstance(value, str) else sources.field(value, "text", str, place)


def _row(value: Any, name: str, place: str) -> dict[str, Any]:
    """A checked row of an evaluation set: no field is missing or blank."""
    kind = name.partition("_")[0]
    if kind == "privleak":
        row = {"text": _text(value, place)}
    else:
        row = {key: sources.field(value, key, str, place) for key in FIELDS[kind]}
    for key, text in row.items():
        if not text.strip():
            raise DataError(f"{place}: field {key!r} is blank")
        unwritten = fault(text)
        if unwritten:
            raise DataError(f"{place}: field {key!r}: {unwritten}")
    return row


def _generated(
    source: SyntheticNewsSource, split: str, sets: Sequence[str], training: bool, requests: Sequence[str]
) -> MuseContent:
    """What the generator makes of ``source``."""
    further = [f"sust-{name.removeprefix(REQUEST)}" for name in sets if name.startswith(REQUEST)]
    for name in (split, *requests, *further):
        if max(_request_numbers(name)) > source.requests:
            raise DataError(f"source.requests: {source.requests}; {name!r} needs {max(_request_numbers(name))}")
    news = synthetic.generate(source)
    made = f"synthetic news (seed {source.seed})"

    training_sets = _generated_training(source, news, split, requests, made) if training else {}
    shots = [list(_pair(shot)) for shot in news.shots]
    rows: dict[str, list[dict[str, Any]]] = {
        "verbmem": as_rows(news.verbatim[0]),
        **{request_set(number): as_rows(cut) for number, cut in enumerate(news.verbatim[1:], 2)},
        "privleak_forget": [{"text": text} for text in news.requests[0]],
        "privleak_holdout": [{"text": text} for text in news.holdout],
    }
    for name, questions in (("knowmem_forget", news.forget_questions), ("knowmem_retain", news.retain_questions)):
        rows[name] = [{"question": q.question, "answer": q.answer, "shots": shots} for q in questions]
    evaluation = {name: (rows[name], f"{made}, {name}") for name in sets}
    return MuseContent(source.model_dump(mode="json"), training_sets, evaluation)


def _generated_training(
    source: SyntheticNewsSource, news: synthetic.News, split: str, requests: Sequence[str], made: str
) -> dict[str, Texts]:
    """The training sets of generated news; ``made`` names the generator in messages."""

    def part(form: Literal["apart", "asked"], texts: list[Any], what: str) -> Texts:
        origin = f"{made}, {what}"
        return Texts(form, texts, [f"{origin}, row {i}" for i in range(len(texts))], origin)

    every = [text for request in news.requests for text in request]
    forget = {
        name: [text for k in _request_numbers(name) for text in news.requests[k - 1]] for name in (split, *requests)
    }
    practice = [
        (prompt(map(_pair, shots), asked.question), synthetic.SPACED + asked.answer) for shots, asked in news.practice
    ]
    return {
        "full": part("apart", every + news.retain, "all requests and retained articles"),
        "forget": part("apart", forget[split], split),
        "retain": part("apart", news.retain, "retained articles"),
        "background": part("apart", news.background, "background articles"),
        "practice": part("asked", practice, "questions about background articles"),
        **{request: part("apart", forget[request], request) for request in requests},
    }


def _pair(question: synthetic.Question) -> tuple[str, str]:
    return question.question, question.answer


def _whole(row: Mapping[str, Any]) -> str:
    """The text that is read of a row when it is evaluated, of which the manifest counts the tokens."""
    if "question" in row:
        return prompt(row["shots"], row["question"]) + row["answer"]
    return f"{row['prompt']} {row['gt']}" if "prompt" in row else row["text"]


DATA = MuseData()
