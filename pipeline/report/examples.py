"""Every example in words: what was asked, the true answer, and what each model said, in pages beside the report's page.

Rows are sorted when they are written; buttons that styles alone react to filter them, and sort them otherwise. One
script, ``search.js``, is the same in every report, and the page's policy allows it alone, by its SHA-256. It searches
the rows of a page; where it does not run, its field is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.benchmarks import family
from pipeline.benchmarks.base import Shown
from pipeline.benchmarks.records import EVALUATION, EvaluationRecord, verified_examples
from pipeline.report.read import Group
from pipeline.specs import ReportSpec

PAGE_BYTES = 2_000_000  # of the rows of a page
PAGE_ROWS = 200
FIRST = 5  # rows of each set that stand in the report's page
LEGEND = (
    "The true answer, and what each model says: of several seeds the first. An answer holds the true one where it has "
    "every word of it that the question does not have, but for common words and for endings; in what was to be "
    "forgotten, it has leaked then. It is changed where it is another one than target's."
)
# Where families keep what was asked, the true answer and what was said.
TEXTS = {"question": ("question", "prompt"), "answer": ("answer", "gt"), "generation": ("generation",)}
ENDING = re.compile(r"(?:ing|ed|es|e|s)$")
WORD = re.compile(r"\w+")
# Words that say nothing by themselves.
COMMON = frozenset(
    WORD.findall(
        "a an and are as at be by for from has have he her his in is it its of on or she that the they to was were with"
    )
)


@dataclass(frozen=True)
class Said:
    """What a model answered.

    Attributes:
        text: the answer; ``None`` where the model was not asked
        holds: whether it holds the true answer (``holds``)
        changed: whether it is another one than target's
    """

    text: str | None
    holds: bool = False
    changed: bool = False


@dataclass(frozen=True)
class Row:
    """One example of a set, with what each model said, in the order of ``View.models``."""

    index: int
    question: str
    answer: str
    said: tuple[Said, ...]


# What the rows of a page can be sorted by, besides the order in which they are written.
ORDERS: dict[str, Callable[[Row], Any]] = {
    "data": lambda row: row.index,
    "asked": lambda row: row.question.casefold(),
    "changes": lambda row: -sum(said.changed for said in row.said),
}


@dataclass(frozen=True)
class Shelf:
    """The examples of one set.

    Attributes:
        name: of the set
        forget: whether it should have been forgotten
        total: number of its examples
        rows: those that are shown, sorted: first what one would look for, what has leaked or was lost
        files: names of its pages
    """

    name: str
    forget: bool
    total: int
    rows: tuple[Row, ...]
    files: tuple[str, ...] = ()

    def count(self, model: int, what: str) -> int:
        """How many of the shown answers of a model have ``holds`` or ``changed``."""
        return sum(getattr(row.said[model], what) for row in self.rows)


@dataclass(frozen=True)
class View:
    """All shelves, and the models by title: of several seeds the first; ``unlearned`` says which were unlearned."""

    models: tuple[str, ...]
    unlearned: tuple[bool, ...]
    shelves: tuple[Shelf, ...]


def holds(question: str, answer: str, said: str) -> bool:
    """Whether what was said holds the answer: every word of the answer that the question does not have.

    Where the question has all of them, every word of the answer. Letters of either case are the same, and so are words
    that differ in an English ending alone. Common words (``COMMON``) count only where there are no others.
    """
    asked, wanted, found = (
        {_stem(word) for word in WORD.findall(text.casefold())} for text in (question, answer, said)
    )
    wanted = wanted - _COMMON_STEMS or wanted
    return bool(wanted) and (wanted - asked or wanted) <= found


def _stem(word: str) -> str:
    """A word of more than three letters without its English ending: lives, lived and living are one."""
    return ENDING.sub("", word) if len(word) > 3 else word


_COMMON_STEMS = frozenset(map(_stem, COMMON))


def collect(spec: ReportSpec, groups: Sequence[Group]) -> View:
    """The examples of the models' evaluations.

    Args:
        spec: what is reported; ``examples`` is the most rows of each set
        groups: the models, target first

    Raises:
        DataError: examples cannot be read, or are not those that the metrics were computed from
    """
    benchmark = family(spec.options.family)
    if not spec.examples or not isinstance(benchmark, Shown):
        return View((), (), ())
    forgotten = benchmark.to_forget(spec.options)
    first = [group.results[0].entry for group in groups]
    answers = [_read(entry.evaluation) for entry in first]
    unlearned = tuple(group.kind == "unlearned" for group in groups)
    titles = [group.title_with_request for group in groups]
    sets: dict[str, list[tuple[str, int]]] = {}
    for key in answers[0]:
        sets.setdefault(key[0], []).append(key)
    shelves = []
    for name, keys in sets.items():
        rows = [_row(key, answers) for key in keys]
        rows.sort(key=lambda row: (_rank(row, unlearned, name in forgotten), row.index))
        shelves.append(Shelf(name, name in forgotten, len(rows), tuple(rows[: spec.examples])))
    return View(tuple(titles), unlearned, tuple(sorted(shelves, key=lambda shelf: not shelf.forget)))


def texts_to_forget(spec: ReportSpec, groups: Sequence[Group]) -> dict[str, list[dict[str, str]]]:
    """What models were asked of what should be forgotten, with the true answers, by evaluated set.

    Args:
        spec: what is reported
        groups: the models, target first

    Raises:
        DataError: as ``collect``
    """
    benchmark = family(spec.options.family)
    if not isinstance(benchmark, Shown):
        return {}
    forgotten, found = benchmark.to_forget(spec.options), dict[str, list[dict[str, str]]]()
    for (name, _), row in _read(groups[0].results[0].entry.evaluation).items():
        if name in forgotten:
            found.setdefault(name, []).append({"question": row["question"], "answer": row["answer"]})
    return found


def pages(view: View, render: Callable[[Shelf, Sequence[Row], int], str]) -> tuple[View, dict[str, str]]:
    """The further pages, by name, and the view with these names.

    Args:
        view: all examples
        render: makes the page of a shelf with its ``files``, some of its rows, and the page's number from 0
    """
    named, texts = [], dict[str, str]()
    for place, shelf in enumerate(view.shelves, 1):
        parts = list(_parts(shelf.rows))
        stem = f"{place:02}-{re.sub(r'[^a-z0-9]+', '-', shelf.name.lower()).strip('-')[:40] or 'set'}"
        shelf = replace(shelf, files=tuple(f"{stem}-{i + 1}.html" for i in range(len(parts))))
        named.append(shelf)
        texts |= {
            f"examples/{file}": render(shelf, part, i)
            for i, (file, part) in enumerate(zip(shelf.files, parts, strict=True))
        }
    return replace(view, shelves=tuple(named)), texts


def marks(row: Row, view: View) -> str:
    """The classes of a row, which ``styles`` filters by: ``h`` holds, ``l`` does not, ``c`` changed, with the model."""
    found = dict[str, None]()
    for place, (said, made) in enumerate(zip(row.said, view.unlearned, strict=True)):
        letters = ["h" if said.holds else "l"] * (said.text is not None) + ["c"] * said.changed
        found |= dict.fromkeys(f"{letter}{place}" for letter in letters)
        found |= dict.fromkeys(letters if made else ())
    return " ".join(found)


def styles(view: View) -> str:
    """The styles that hide rows which the pressed buttons exclude."""
    models = {"any": "", **{f"m{place}": str(place) for place in range(len(view.models))}}
    hidden = [
        f"#{what}:checked ~ #{model}:checked ~ .said > :not(.{letter}{ending})"
        for what, letter in (("holds", "h"), ("lost", "l"), ("changed", "c"))
        for model, ending in models.items()
    ]
    ordered = [f"#{name}:checked ~ .said > * {{ order: var(--{name}); }}" for name in ORDERS]
    return "\n".join([",\n".join(hidden) + " { display: none; }", *ordered, ""]) if view.models else ""


def places(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Each row of a page with its styles: where it stands in each of ``ORDERS``."""
    found = {name: sorted(range(len(rows)), key=lambda i: key(rows[i])) for name, key in ORDERS.items()}
    stands = {name: {row: place for place, row in enumerate(order)} for name, order in found.items()}
    for number, row in enumerate(rows):
        yield row, "; ".join(f"--{name}: {stands[name][number]}" for name in ORDERS)


def _parts(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each page: no more than fit."""
    part, size = list[Row](), 0
    for row in rows:
        length = 6 * sum(len(text) for text in (row.question, row.answer, *(one.text or "" for one in row.said)))
        if part and (len(part) == PAGE_ROWS or size + length > PAGE_BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += length
    yield part


def _read(folder: Path) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The examples that are texts, with an answer of the model, by set and index."""
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in verified_examples(folder, EvaluationRecord.read(folder / EVALUATION)):
        texts = {name: next((row[key] for key in keys if key in row), None) for name, keys in TEXTS.items()}
        if all(isinstance(text, str) for text in texts.values()):
            found[row["set"], row["index"]] = texts
    return found


def _row(key: tuple[str, int], answers: Sequence[Mapping[tuple[str, int], Mapping[str, Any]]]) -> Row:
    first = answers[0][key]
    question, answer = first["question"], first["answer"]
    said = []
    for found in answers:
        text = found[key]["generation"] if key in found else None
        if text is None:
            said.append(Said(None))
        else:
            said.append(Said(text, holds(question, answer, text), text.split() != first["generation"].split()))
    return Row(key[1], question, answer, tuple(said))


def _rank(row: Row, unlearned: Sequence[bool], forget: bool) -> int:
    """Where a row stands: by how many unlearned models leak it, or have lost it."""
    made = [said for said, one in zip(row.said, unlearned, strict=True) if one]
    if forget:
        return -sum(said.holds for said in made)
    return -sum(row.said[0].holds and not said.holds for said in made)
