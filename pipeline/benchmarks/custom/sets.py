"""Which of a user's sets a split trains on and asks about, by the names of ``custom``'s sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.data.settings import RESERVED, FilesSource

Form = Literal["questions", "texts", "cloze"]
Part = Literal["forget", "retain", "holdout", "other", "request"]
UNSEEN = ("holdout", "reworded", "cloze")  # uses of sets that no model is trained on


@dataclass(frozen=True)
class EvaluatedSet:
    """A set that models are asked about.

    Attributes:
        form: what is asked
        part: whether it should be forgotten (``forget``), should stay (``retain``, ``other``), was never seen
            (``holdout``), or is what a later request forgets (``request``)
        names: the user's sets that it is made of
    """

    form: Form
    part: Part
    names: tuple[str, ...]


def evaluated(source: FilesSource, split: str, later: Sequence[str] = ()) -> dict[str, EvaluatedSet]:
    """The sets that models are asked about, by name; of each use questions and texts apart.

    Args:
        source: the user's files
        split: the forget split
        later: splits that are forgotten after it, whose forget sets are asked about too
    """
    chosen = source.splits[split]
    found: dict[str, EvaluatedSet] = {}
    uses: dict[str, Part] = {"forget": "forget", "retain": "retain", "holdout": "holdout", "reworded": "forget"}
    for use, part in uses.items():
        named = getattr(chosen, use)
        for form, name in (("questions", use), ("texts", f"{use}_texts")):
            some = tuple(one for one in named if _is_text(source, one) == (form == "texts"))
            if some:
                found[name] = EvaluatedSet("texts" if form == "texts" else "questions", part, some)
    if chosen.cloze:
        found["cloze"] = EvaluatedSet("cloze", "forget", tuple(chosen.cloze))
    asked = {name for names in chosen.named.values() for name in names} - {*chosen.others}
    requested = [name for other in later for name in source.splits[other].forget]
    others: dict[str, Part] = {**dict.fromkeys(requested, "request"), **dict.fromkeys(chosen.others, "other")}
    for name, part in others.items():
        if name not in asked and name not in found:
            found[name] = EvaluatedSet("texts" if _is_text(source, name) else "questions", part, (name,))
    return found


def trained(source: FilesSource, split: str) -> dict[str, tuple[str, ...]]:
    """The user's sets of each training set. ``full``: all that any split forgets, and what this one keeps."""
    chosen = source.splits[split]
    every = [name for other in source.splits.values() for name in other.forget]
    sets = {
        "full": tuple(dict.fromkeys([*every, *chosen.retain])),
        "forget": tuple(chosen.forget),
        "retain": tuple(chosen.retain),
    }
    return sets | {name: (name,) for name in own_names(source)}


def own_names(source: FilesSource) -> list[str]:
    """The user's sets that a model can be trained on by their own names."""
    unseen = {name for split in source.splits.values() for use in UNSEEN for name in split.named[use]}
    return [name for name in source.sets if name not in unseen and name not in RESERVED]


def forgotten(source: FilesSource, split: str) -> frozenset[str]:
    """The training sets with something that is to be forgotten, now or in a later request."""
    chosen = source.splits[split]
    later = {name for other in source.splits.values() for name in other.forget} - {*chosen.retain}
    return frozenset({"full", "forget", *chosen.forget, *later})


def answers_only(source: FilesSource) -> bool:
    """Whether everything to be forgotten is questions with answers, to which others could be preferred."""
    return not any(_is_text(source, name) for split in source.splits.values() for name in split.forget)


def files_by_set(source: FilesSource, split: str) -> Mapping[str, str]:
    """The user's sets that a split reads, each with a use of it."""
    chosen = source.splits[split].named
    every = {name: "forget" for other in source.splits.values() for name in other.forget}
    return {
        **dict.fromkeys(own_names(source), "forget"),
        **every,
        **{n: use for use, some in chosen.items() for n in some},
    }


def _is_text(source: FilesSource, name: str) -> bool:
    return source.sets[name].form == "texts"
