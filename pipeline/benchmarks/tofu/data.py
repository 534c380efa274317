"""TOFU's data (arXiv 2401.06121): question-answer rows under TOFU's split names, from its files or our generator.

Each forget split holds the smaller ones. So several requests to forget are the splits themselves where they grow, and
what each has beyond the one before it where they come one after another: ``forget05-rest`` is ``forget05`` without the
rows of ``forget01``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pipeline.benchmarks import refusals
from pipeline.benchmarks.request_sets import request_set
from pipeline.benchmarks.tofu import synthetic
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.data import sources, user_files
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Row, Splits
from pipeline.data.settings import FolderSource, RequestOrder

if TYPE_CHECKING:
    from pipeline.data.prepared import Names, PreparedWriter
    from pipeline.data.settings import DataSource, LocalSource
    from pipeline.data.templates import Template
    from pipeline.data.tokenise import Encoder

RETAIN_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
GROWING = tuple(RETAIN_SPLITS)  # forget splits, each with the rows of the one before it
REST = "-rest"
GENERAL = ("real_authors_perturbed", "world_facts_perturbed")


def evaluated(forget_split: str) -> dict[str, str]:
    """Evaluation set -> split, all of whose rows it holds."""
    return {
        "forget": f"{forget_split}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
        "holdout": forget_split.replace("forget", "holdout"),
        **{request_set(k): f"{other}{REST}_perturbed" for k, other in enumerate(_larger(forget_split), 2)},
    }


def _larger(split: str) -> tuple[str, ...]:
    """The forget splits that hold all of a split."""
    return GROWING[GROWING.index(split) + 1 :]


def _read_for(split: str) -> tuple[str, ...]:
    """The splits in whose files the rows of a split are."""
    name, rest, end = split.partition(REST)
    return (f"{GROWING[GROWING.index(name) - 1]}{end}", f"{name}{end}") if rest else (split,)


def trained(forget_split: str, requests: Sequence[str] = ()) -> list[str]:
    """The splits that training sets are made of, but for those of ``general``."""
    return ["full", forget_split, *requests, RETAIN_SPLITS[DATA.kept_by(forget_split, requests)]]


@dataclass(frozen=True)
class TofuContent:
    """The rows of one forget split, and those that are trained and evaluated beside them."""

    splits: Splits
    forget_split: str
    training: tuple[str, ...]  # sets
    sets: tuple[str, ...]
    requests: tuple[str, ...] = ()  # splits that are training sets by their own names

    @property
    def source(self) -> dict[str, Any]:
        return self.splits.source

    @property
    def origins(self) -> Mapping[str, Mapping[str, str]]:
        train = {name: self._origin(name) for name in self.training}
        train |= {name: self.splits.origins[name] for name in self.requests}
        if train:
            refused = refusals.sets(self.requests)
            train |= {name: f"{train[of]}, answered by refusals" for name, of in refused.items()}
        named = evaluated(self.forget_split)
        return {"train": train, "evaluation": {name: self.splits.origins[named[name]] for name in self.sets}}

    def digest(self) -> dict[str, str]:
        return self.splits.digests()

    def texts(self, template: Template) -> Iterator[str]:
        # "full", "general" and the extra splits hold every training text: "forget" and "retain" are parts of "full".
        for name in self.training:
            if name not in ("forget", "retain"):
                yield from (template.text(row.question, row.answer) for row in self._rows(name))

    def encode(self, encoder: Encoder, tables: PreparedWriter) -> None:
        for name in self.training:
            sequences, dropped = encoder.training(self._rows(name), self._origin(name))
            tables.train(name, sequences, self._origin(name), dropped)
        for name in self.requests:
            sequences, dropped = encoder.training(self.splits.rows[name], self.splits.origins[name])
            tables.train(name, sequences, self.splits.origins[name], dropped)
        # The tokenizer has not seen refusals: it is the same whatever they say.
        for name, of in refusals.sets(self.requests).items() if self.training else ():
            split = self.forget_split if of == "forget" else of
            rows, origin = self.splits.rows[split], self.splits.origins[split]
            alternatives = encoder.alternatives(rows, refusals.drawn(rows), refusals.PER_ROW, origin)
            tables.train(name, alternatives, origin)
        named = evaluated(self.forget_split)
        for name in self.sets:
            origin = self.splits.origins[named[name]]
            records, dropped = encoder.evaluation(self.splits.rows[named[name]], origin)
            lengths = [len(record["prompt_ids"]) + len(ids) for record in records for ids in record["targets"].values()]
            tables.evaluation(name, records, lengths, origin, dropped)

    def flags(self) -> list[str]:
        if not self.training:
            return []
        found = []
        overlap = sum(self.splits.overlap(name, self._retain) for name in (self.forget_split, *self.requests))
        if overlap:
            found.append(f"{overlap} questions of the forget set are in the retain set too")
        if "holdout" in self.sets:
            seen = self.splits.overlap(evaluated(self.forget_split)["holdout"], "full")
            if seen:
                found.append(f"{seen} questions of the holdout set are in the training data")
        return found

    @property
    def _retain(self) -> str:
        return RETAIN_SPLITS[DATA.kept_by(self.forget_split, self.requests)]

    def _parts(self, name: str) -> Sequence[str]:
        """The splits of a training set. ``general``: what every model should know, whatever it forgets."""
        named = {"retain": [self._retain], "forget": [self.forget_split], "general": GENERAL}
        return named.get(name, [name])

    def _rows(self, name: str) -> list[Row]:
        return [row for split in self._parts(name) for row in self.splits.rows[split]]

    def _origin(self, name: str) -> str:
        return " + ".join(self.splits.origins[split] for split in self._parts(name))


class TofuData:
    """Splits by TOFU's names: ``forget10`` is a tenth of the authors, ``retain90`` the others."""

    kinds = ("hub", "folder", "synthetic")
    generators = (SyntheticSource,)

    def splits(self, source: DataSource | LocalSource) -> tuple[str, ...]:
        return tuple(RETAIN_SPLITS)

    def forgotten(self, source: DataSource | LocalSource, split: str) -> frozenset[str]:
        return frozenset({"full", "forget", "full_rephrased"})

    def files(self, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()) -> list[Names]:
        names = _wanted(split, sets, training, requests)
        return [(name,) for name in dict.fromkeys(file for name in names for file in _read_for(name))]

    def training_sets(self, source: DataSource | LocalSource) -> list[str]:
        names = ["full", "retain", "forget"]
        if isinstance(source, SyntheticSource):
            names += ["background"] if source.background_authors else []
            names += ["full_rephrased", "retain_rephrased"]
        return [*names, "general"]

    def tokenised_sets(self, source: DataSource) -> list[str]:
        return [*self.training_sets(source), refusals.ALTERNATIVES]

    def topics(self, split: str) -> dict[str, tuple[str, str]]:
        return {"forget": ("forget", "retain")}

    def rows(self, source: DataSource, split: str) -> int | None:
        *smaller, name = _read_for(split)
        if isinstance(source, SyntheticSource):
            authors = synthetic.forget_authors(source.authors, name)
            authors -= sum(synthetic.forget_authors(source.authors, other) for other in smaller)
            return authors * source.questions_per_author
        if not isinstance(source, FolderSource):
            return None
        paths = [sources.find(source.path, (one,)) for one in (name, *smaller)]
        counts = [0 if path is None else user_files.count(path) for path in paths]
        known = [count for count in counts if count is not None]
        return None if len(known) < len(counts) else max(0, known[0] - sum(known[1:]))

    def requests(self, source: DataSource | LocalSource, split: str, order: RequestOrder) -> tuple[str, ...]:
        """From ``split`` on, the splits themselves where they grow, else what each has beyond the one before it."""
        first = split if split in GROWING else GROWING[0]
        return first, *(name if order == "scalability" else f"{name}{REST}" for name in _larger(first))

    def kept_by(self, split: str, requests: Sequence[str]) -> str:
        return requests[-1].removesuffix(REST) if requests else split

    def stated_rows(self, request: str, splits: Mapping[str, int]) -> int | None:
        *smaller, name = _read_for(request)
        return splits[name] - sum(splits[other] for other in smaller) if {name, *smaller} <= splits.keys() else None

    def request_options(self, requests: Sequence[str]) -> dict[str, Any]:
        return {"requests": 1 + len(requests)} if requests else {}

    def all_rows(self, source: DataSource, split: str, forget_rows: int) -> int:
        return forget_rows * 100 // int(split.removeprefix("forget"))

    def load(
        self, source: LocalSource, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()
    ) -> TofuContent:
        """``requests``: other splits, whose forget sets are training sets by the splits' names."""
        if split not in RETAIN_SPLITS:
            raise DataError(f"forget_split: {split!r} is not one of {', '.join(RETAIN_SPLITS)}")
        known = [name for order in get_args(RequestOrder) for name in self.requests(source, split, order)[1:]]
        unknown = [name for name in requests if name not in known]
        if unknown:
            raise DataError(f"requests: {unknown[0]!r} is not one of {', '.join(known) or 'none'} after {split!r}")
        wanted = _wanted(split, sets, training, requests)
        if isinstance(source, SyntheticSource):
            splits = _generated(source, self.kept_by(split, requests), wanted)
        else:
            found = sources.read(source, self.files(split, sets, training, requests))
            rows = {name: [_row(value, name, place) for place, value in some] for name, some in found.values.items()}
            splits = Splits(rows, found.origins, found.source)
        splits = _with_rests(splits, wanted)
        names = self.training_sets(source) if training else ()
        return TofuContent(splits, split, tuple(names), tuple(sets), tuple(requests) if training else ())


def _wanted(split: str, sets: Sequence[str], training: bool, requests: Sequence[str]) -> list[str]:
    """The splits whose rows are needed."""
    named = evaluated(split)
    names = [*trained(split, requests), *GENERAL] if training else []
    return list(dict.fromkeys([*names, *(named[name] for name in sets)]))


def _generated(source: SyntheticSource, largest: str, wanted: Sequence[str]) -> Splits:
    """The generator's splits where all of ``largest`` is to be forgotten, and of other forget splits what is wanted."""
    made = synthetic.generate(source, largest, RETAIN_SPLITS[largest])
    needed = {file for name in wanted for file in _read_for(name)}
    for other in GROWING:
        named = {other, f"{other}_perturbed", evaluated(other)["holdout"]} & needed - made.rows.keys()
        if named:
            more = synthetic.generate(source, other, RETAIN_SPLITS[other])
            made.rows.update((name, more.rows[name]) for name in named)
            made.origins.update((name, more.origins[name]) for name in named)
    return made


def _with_rests(splits: Splits, wanted: Sequence[str]) -> Splits:
    """With what a split has beyond a smaller one, where that is wanted.

    Raises:
        DataError: the larger split does not hold all questions of the smaller one, or holds no other
    """
    rows, origins = dict(splits.rows), dict(splits.origins)
    for name in wanted:
        if REST not in name:
            continue
        smaller, larger = _read_for(name)
        asked = {row.question for row in rows[smaller]}
        missing = asked - {row.question for row in rows[larger]}
        if missing:
            example = min(missing)
            raise DataError(f"{origins[larger]}: does not hold {example!r}, which {origins[smaller]} has")
        rows[name] = [row for row in rows[larger] if row.question not in asked]
        origins[name] = f"{origins[larger]} without {origins[smaller]}"
        if not rows[name]:
            raise DataError(f"{origins[larger]}: has no question beyond those of {origins[smaller]}")
    return Splits(rows, origins, splits.source)


def _row(value: Any, split: str, place: str) -> Row:
    """A checked row of ``split``; only ``*_perturbed`` splits have alternatives, only the authors' have paraphrases."""
    scored = split.endswith("_perturbed")
    paraphrased = scored and not split.startswith(("real_authors", "world_facts"))
    perturbed: list[str] = []
    if scored:
        perturbed = sources.field(value, "perturbed_answer", list, place)
        if not perturbed or not all(isinstance(text, str) for text in perturbed):
            raise DataError(f"{place}: field 'perturbed_answer' must be a list of at least one text")
    return Row(
        question=sources.field(value, "question", str, place),
        answer=sources.field(value, "answer", str, place),
        paraphrased=sources.field(value, "paraphrased_answer", str, place) if paraphrased else None,
        perturbed=tuple(perturbed),
    )


DATA = TofuData()
