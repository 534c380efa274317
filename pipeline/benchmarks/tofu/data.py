"""TOFU's data (arXiv 2401.06121): question-answer rows under TOFU's split names, from its files or our generator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks import refusals
from pipeline.benchmarks.tofu import synthetic
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.data import sources, user_files
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Row, Splits
from pipeline.data.settings import FolderSource

if TYPE_CHECKING:
    from pipeline.data.prepared import Names, PreparedWriter
    from pipeline.data.settings import DataSource, LocalSource
    from pipeline.data.templates import Template
    from pipeline.data.tokenise import Encoder

RETAIN_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
ALTERNATIVES = "idk"  # the forget set's prompts with refusals for answers
GENERAL = ("real_authors_perturbed", "world_facts_perturbed")


def evaluated(forget_split: str) -> dict[str, str]:
    """Evaluation set -> split, all of whose rows it holds."""
    return {
        "forget": f"{forget_split}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
        "holdout": forget_split.replace("forget", "holdout"),
    }


def trained(forget_split: str) -> list[str]:
    """The splits that training sets are made of, but for those of ``general``."""
    return ["full", forget_split, RETAIN_SPLITS[forget_split]]


@dataclass(frozen=True)
class TofuContent:
    """The rows of one forget split, and those that are trained and evaluated beside them."""

    splits: Splits
    forget_split: str
    training: tuple[str, ...]  # sets
    sets: tuple[str, ...]

    @property
    def source(self) -> dict[str, Any]:
        return self.splits.source

    @property
    def origins(self) -> Mapping[str, Mapping[str, str]]:
        train = {name: self._origin(name) for name in self.training}
        if train:
            train[ALTERNATIVES] = f"{train['forget']}, answered by refusals"
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
        if self.training:
            # The tokenizer has not seen refusals: it is the same whatever they say.
            rows, origin = self._rows("forget"), self._origin("forget")
            alternatives = encoder.alternatives(rows, refusals.drawn(rows), refusals.PER_ROW, origin)
            tables.train(ALTERNATIVES, alternatives, origin)
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
        overlap = self.splits.overlap(self.forget_split, RETAIN_SPLITS[self.forget_split])
        if overlap:
            found.append(f"{overlap} questions of the forget set are in the retain set too")
        if "holdout" in self.sets:
            seen = self.splits.overlap(evaluated(self.forget_split)["holdout"], "full")
            if seen:
                found.append(f"{seen} questions of the holdout set are in the training data")
        return found

    def _parts(self, name: str) -> Sequence[str]:
        """The splits of a training set. ``general``: what every model should know, whatever it forgets."""
        named = {"retain": [RETAIN_SPLITS[self.forget_split]], "forget": [self.forget_split], "general": GENERAL}
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

    def files(self, split: str, sets: Sequence[str], training: bool) -> list[Names]:
        named = evaluated(split)
        names = [*trained(split), *GENERAL] if training else []
        return [(name,) for name in dict.fromkeys([*names, *(named[name] for name in sets)])]

    def training_sets(self, source: DataSource | LocalSource) -> list[str]:
        names = ["full", "retain", "forget"]
        if isinstance(source, SyntheticSource):
            names += ["background"] if source.background_authors else []
            names += ["full_rephrased", "retain_rephrased"]
        return [*names, "general"]

    def tokenised_sets(self, source: DataSource) -> list[str]:
        return [*self.training_sets(source), ALTERNATIVES]

    def topics(self, split: str) -> dict[str, tuple[str, str]]:
        return {"forget": ("forget", "retain")}

    def rows(self, source: DataSource, split: str) -> int | None:
        if isinstance(source, SyntheticSource):
            return synthetic.forget_authors(source.authors, split) * source.questions_per_author
        if not isinstance(source, FolderSource):
            return None
        path = sources.find(source.path, (split,))
        return 0 if path is None else user_files.count(path)

    def all_rows(self, source: DataSource, split: str, forget_rows: int) -> int:
        return forget_rows * 100 // int(split.removeprefix("forget"))

    def load(self, source: LocalSource, split: str, sets: Sequence[str], training: bool) -> TofuContent:
        if split not in RETAIN_SPLITS:
            raise DataError(f"forget_split: {split!r} is not one of {', '.join(RETAIN_SPLITS)}")
        if isinstance(source, SyntheticSource):
            splits = synthetic.generate(source, split, RETAIN_SPLITS[split])
        else:
            found = sources.read(source, self.files(split, sets, training))
            rows = {name: [_row(value, name, place) for place, value in some] for name, some in found.values.items()}
            splits = Splits(rows, found.origins, found.source)
        names = self.training_sets(source) if training else ()
        return TofuContent(splits, split, tuple(names), tuple(sets))


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
