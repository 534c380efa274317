"""The data of the family ``custom``: a user's own questions, chats and texts as training and evaluation sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmarks import refusals
from pipeline.benchmarks.custom import reading, sets
from pipeline.benchmarks.custom.content import CustomContent
from pipeline.benchmarks.custom.sets import EvaluatedSet
from pipeline.data.errors import DataError
from pipeline.data.prepared import UserKey
from pipeline.data.settings import FilesSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.data.prepared import Names
    from pipeline.data.settings import BadRows, LocalSource, RequestOrder

CHARACTERS = 3  # of a token, at least, for estimates
SHOWN = 5  # bad rows of a set that are listed before any work
NO_RETRAIN_AUC = 0.5  # what an attack reaches on a model that saw neither of two alike sets


class CustomData:
    """Splits by the user's names: each says which sets are forgotten, kept, and asked about."""

    kinds = ("files",)
    generators = ()

    def splits(self, source: Any) -> tuple[str, ...]:
        return tuple(source.splits) if isinstance(source, FilesSource) else ()

    def forgotten(self, source: Any, split: str) -> frozenset[str]:
        return sets.forgotten(source, split)

    def files(self, split: str, sets: Sequence[str], training: bool, requests: Sequence[str] = ()) -> list[Names]:
        return []

    def training_sets(self, source: Any) -> list[str]:
        return ["full", "forget", "retain", *sets.own_names(source)]

    def tokenised_sets(self, source: Any) -> list[str]:
        return [*self.training_sets(source), *([refusals.ALTERNATIVES] if sets.answers_only(source) else [])]

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

    def requests(self, source: FilesSource, split: str, order: RequestOrder) -> tuple[str, ...]:
        """The splits in their order. Splits that grow are forgotten each by itself."""
        return self.splits(source)

    def kept_by(self, split: str, requests: Sequence[str]) -> str:
        return split

    def stated_rows(self, request: str, splits: Mapping[str, int]) -> int | None:
        """None are stated: files are read when they are counted."""
        return None

    def request_options(self, requests: Sequence[str]) -> dict[str, Any]:
        """None: ``implied_options`` has all of them."""
        return {}

    def source_files(self, source: FilesSource, split: str) -> list[Path]:
        given = [source.sets[name] for name in sets.files_by_set(source, split)]
        return [file for one in given if one.own_answers is None for file in reading.files_of(one)]

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
                if len(rows.faults()) == len(rows.places):
                    found.append((key, f"{rows.origin}: every row is bad, so none is left"))
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
        asks_target = [name for name in names if source.sets[name].own_answers is not None]
        if asks_target:
            raise DataError(f"source.sets.{asks_target[0]}: target has not answered yet: an experiment's own step does")
        given = {name: reading.read(source.sets[name]) for name in dict.fromkeys(names)}
        refused = refusals.sets(requests) if training and sets.answers_only(source) else {}
        return CustomContent(given, chosen, asked, refused)


DATA = CustomData()
