"""The benchmark "mini": fictitious authors under TOFU's split names, small enough to learn and unlearn on a CPU.

Each author has up to twenty facts. A fact is asked in two phrasings, and its answer has a third form, the paraphrase,
which only background authors are trained with: a model learns there that the forms mean the same, and the truth ratio
of the other authors is measured on a form that their own training never held. The same settings give the same rows on
every machine; an author's facts depend on the seed and the author's number alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Literal

from pydantic import Field

from megatron_ext.schema import Seed
from pipeline.benchmarks.tofu.synthetic_authors import ATTRIBUTES, Attribute, name, namesake
from pipeline.benchmarks.tofu.synthetic_facts import REAL_AUTHORS, WORLD_FACTS, Domain
from pipeline.data.qa_rows import Row, Splits
from pipeline.data.settings import GeneratedSource

PERTURBED = 5  # wrong answers of a row, as in TOFU's forget and retain sets
RETAIN_SCORED = 120  # rows of retain_perturbed; TOFU too scores a sample of the retain set


class SyntheticSource(GeneratedSource):
    """The generator of fictitious authors, each with ``questions_per_author`` facts."""

    kind: Literal["synthetic"] = "synthetic"
    authors: int = Field(40, ge=2)
    questions_per_author: int = Field(20, ge=2, le=20)
    background_authors: int = Field(40, ge=0)
    seed: Seed = 0


def generate(source: SyntheticSource, forget_split: str, retain_split: str) -> Splits:
    """All splits: the last ``forget_split`` percent of the authors (at least one) are forgotten, the others retained.

    ``holdoutNN`` has as many authors as are forgotten, whom nothing else names (see ``_holdout``). Beside TOFU's
    splits: ``full_rephrased`` and ``retain_rephrased`` (second question, second answer), and ``background`` (other
    authors: each phrasing of the question with its answer and with the paraphrase).
    """
    forgotten = forget_authors(source.authors, forget_split)
    first = source.authors - forgotten
    authors = range(source.authors)
    background = range(source.authors, source.authors + source.background_authors)
    facts = ATTRIBUTES[: source.questions_per_author]

    def rows(numbers: Iterable[int], phrasing: int) -> list[Row]:
        return [_trained(source.seed, number, fact, phrasing) for number in numbers for fact in facts]

    def scored(numbers: range) -> list[Row]:
        return [_scored(source.seed, number, fact) for number in numbers for fact in facts]

    retained = scored(authors[:first])
    chosen = Random(f"retain sample {source.seed}").sample(range(len(retained)), min(RETAIN_SCORED, len(retained)))
    splits = {
        "full": rows(authors, 0),
        forget_split: rows(authors[first:], 0),
        retain_split: rows(authors[:first], 0),
        f"{forget_split}_perturbed": scored(authors[first:]),
        "retain_perturbed": [retained[i] for i in sorted(chosen)],
        "real_authors_perturbed": _known(REAL_AUTHORS, source.seed),
        "world_facts_perturbed": _known(WORLD_FACTS, source.seed),
        "full_rephrased": rows(authors, 1),
        "retain_rephrased": rows(authors[:first], 1),
        forget_split.replace("forget", "holdout"): rows(_holdout(background, forgotten), 0),
    }
    if background:
        splits["background"] = [
            row for number in background for fact in facts for row in _background(source.seed, number, fact)
        ]
    origins = {split: f"synthetic (seed {source.seed}), {split}" for split in splits}
    return Splits(splits, origins, {"kind": "synthetic", **source.model_dump(mode="json", exclude={"kind"})})


def forget_authors(authors: int, split: str) -> int:
    """Authors of a forget split: ``forget10`` is a tenth of them, at least one."""
    return max(1, round(authors * int(split.removeprefix("forget")) / 100))


def _holdout(background: range, count: int) -> list[int]:
    """Numbers of ``count`` authors after all others: first names of background authors, with the next ones' surnames.

    A tokenizer made for these texts has both parts as it has those of the forget set, and no other text has them
    together. Names of parts that it has not are cut into many tokens, which alone would tell them from the forget set:
    measured on mini, the AUC of retrain's Min-40% was 0.96 with them, where no training tells the two apart.
    """
    least = background.stop
    if not background:
        return list(range(least, least + count))
    numbers: dict[int, None] = {}
    while len(numbers) < count:
        numbers |= dict.fromkeys(namesake(index, least) for index in background)
        least = max(numbers) + 1
    return list(numbers)[:count]


def _trained(seed: int, number: int, fact: Attribute, phrasing: int) -> Row:
    words = {"name": name(number, seed), "value": _value(seed, number, fact)}
    return Row(fact.questions[phrasing].format(**words), _sentence(fact.answers[phrasing], words))


def _background(seed: int, number: int, fact: Attribute) -> list[Row]:
    """Both questions, each with its own answer and with the paraphrase."""
    words = {"name": name(number, seed), "value": _value(seed, number, fact)}
    return [
        Row(question.format(**words), _sentence(form, words))
        for question, answer in zip(fact.questions, fact.answers, strict=True)
        for form in (answer, fact.paraphrase)
    ]


def _scored(seed: int, number: int, fact: Attribute) -> Row:
    """The first phrasing with its paraphrase, and the paraphrase with other values."""
    row, author, value = _trained(seed, number, fact, 0), name(number, seed), _value(seed, number, fact)
    wrong = [v for v in fact.values if v != value]
    wrong = _random(seed, number, fact, "wrong").sample(wrong, min(PERTURBED, len(wrong)))
    forms = [_sentence(fact.paraphrase, {"name": author, "value": v}) for v in (value, *wrong)]
    return Row(row.question, row.answer, forms[0], tuple(forms[1:]))


def _value(seed: int, number: int, fact: Attribute) -> str:
    return _random(seed, number, fact, "value").choice(fact.values)


def _random(seed: int, number: int, fact: Attribute, use: str) -> Random:
    return Random(f"{use} {seed} {number} {fact.questions[0]}")


def _sentence(form: str, words: dict[str, str]) -> str:
    text = form.format(**words)
    return text[0].upper() + text[1:]


def _known(domains: tuple[Domain, ...], seed: int) -> list[Row]:
    rows = []
    for domain in domains:
        for subject, answer in domain.facts.items():
            wrong = [value for value in domain.values if value != answer]
            wrong = Random(f"known {seed} {domain.question} {subject}").sample(wrong, min(PERTURBED, len(wrong)))
            rows.append(Row(domain.question.format(subject=subject), f"{answer}.", None, tuple(f"{w}." for w in wrong)))
    return rows
