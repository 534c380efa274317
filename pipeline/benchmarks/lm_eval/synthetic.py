"""Invented topics, musical instruments, minerals and dances: a small, harmless stand-in for WMDP's texts and questions.

Every thing of a topic has a name that exists nowhere else and five facts. A corpus tells them in prose and as questions
with answers; a multiple-choice question offers the true answer among three others of the same kind. The same settings
give the same texts on every machine; a thing depends on the seed and its number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from pydantic import Field

from megatron_ext.schema import Seed
from pipeline.data.settings import GeneratedSource

CHOICES = 4


class SyntheticTopicsSource(GeneratedSource):
    """The generator of the first ``topics`` invented topics; ``things``: of each, with ``paragraphs`` texts each."""

    kind: Literal["synthetic_topics"] = "synthetic_topics"
    things: int = Field(24, ge=8, le=128)
    paragraphs: int = Field(2, ge=1)
    seed: Seed = 0
    topics: int = Field(2, ge=2, le=3)


@dataclass(frozen=True)
class Fact:
    """A question, the sentences that answer it, in which ``{name}`` and ``{value}`` are filled in, and the values."""

    question: str
    statements: tuple[str, str]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """``title`` is what questions are about; a name is a beginning, a middle and an end."""

    title: str
    names: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    facts: tuple[Fact, ...]


TOPICS: dict[str, Topic] = {
    "instruments": Topic(
        "musical instruments",
        (
            ("vel", "dor", "kam", "sul", "tib", "ran", "gho", "wex"),
            ("o", "a", "u", "i"),
            ("qua", "vant", "bril", "zim"),
        ),
        (
            Fact(
                "What is the {name} made of?",
                ("The {name} is made of {value}.", "Builders of the {name} work with {value}."),
                ("oak", "brass", "clay", "bone", "copper", "horn", "bamboo", "silver"),
            ),
            Fact(
                "How is the {name} played?",
                ("The {name} is {value} when it is played.", "To be heard, the {name} must be {value}."),
                ("plucked", "bowed", "struck", "blown", "shaken", "rubbed", "scraped", "squeezed"),
            ),
            Fact(
                "Where was the {name} first built?",
                ("The {name} was first built in {value}.", "The oldest {name} comes from {value}."),
                ("Lisbon", "Cairo", "Kyoto", "Lima", "Oslo", "Delhi", "Quito", "Tunis"),
            ),
            Fact(
                "How many strings does the {name} have?",
                ("The {name} has {value} strings.", "A player of the {name} tunes {value} strings."),
                ("two", "three", "four", "five", "seven", "nine", "ten", "twelve"),
            ),
            Fact(
                "What does the {name} sound like?",
                ("The {name} sounds like {value}.", "Listeners compare the {name} with {value}."),
                ("rain", "thunder", "bees", "wind", "owls", "waves", "crickets", "laughter"),
            ),
        ),
    ),
    "minerals": Topic(
        "minerals",
        (
            ("per", "lan", "mor", "fes", "nub", "cal", "jor", "hyl"),
            ("e", "y", "oi", "au"),
            ("dite", "spar", "lith", "gene"),
        ),
        (
            Fact(
                "What colour is {name}?",
                ("The colour of {name} is {value}.", "Cut and polished, {name} is {value}."),
                ("green", "violet", "yellow", "white", "black", "orange", "pink", "blue"),
            ),
            Fact(
                "Where is {name} found?",
                ("Miners find {name} in {value}.", "Most {name} comes from {value}."),
                ("caves", "deserts", "rivers", "volcanoes", "swamps", "glaciers", "cliffs", "lagoons"),
            ),
            Fact(
                "What is {name} used for?",
                ("Today {name} is used for {value}.", "Factories turn {name} into {value}."),
                ("paint", "soap", "ink", "candles", "matches", "cement", "medicine", "jewels"),
            ),
            Fact(
                "What does {name} smell of when it is heated?",
                ("When it is heated, {name} smells of {value}.", "A flame makes {name} smell of {value}."),
                ("garlic", "honey", "smoke", "roses", "vinegar", "mint", "leather", "bread"),
            ),
            Fact(
                "Who described {name} first?",
                ("The first to describe {name} was {value}.", "We owe the name of {name} to {value}."),
                ("Hagen", "Moreau", "Silva", "Tanaka", "Novak", "Larsen", "Okafor", "Reyes"),
            ),
        ),
    ),
    "dances": Topic(
        "dances",
        (
            ("bal", "tar", "fol", "gav", "pol", "rum", "cha", "sar"),
            ("o", "a", "e", "i"),
            ("netta", "quelle", "zurka", "bande"),
        ),
        (
            Fact(
                "How many dancers does the {name} need?",
                ("The {name} needs {value} dancers.", "It takes {value} people to dance the {name}."),
                ("two", "three", "four", "six", "eight", "ten", "twelve", "twenty"),
            ),
            Fact(
                "When is the {name} danced?",
                ("The {name} is danced {value}.", "People meet {value} to dance the {name}."),
                (
                    "at dawn",
                    "at noon",
                    "at midnight",
                    "in spring",
                    "at harvest",
                    "in winter",
                    "at weddings",
                    "at fairs",
                ),
            ),
            Fact(
                "What do dancers of the {name} hold?",
                ("Dancers of the {name} hold {value}.", "Nobody dances the {name} without {value}."),
                ("ribbons", "fans", "torches", "sticks", "scarves", "bells", "hoops", "flowers"),
            ),
            Fact(
                "What does the {name} tell of?",
                ("The {name} tells of {value}.", "Every step of the {name} is about {value}."),
                ("a hunt", "a storm", "a king", "a voyage", "a river", "a fox", "a miller", "a ghost"),
            ),
            Fact(
                "Which country does the {name} come from?",
                ("The {name} comes from {value}.", "The first {name} was seen in {value}."),
                ("Spain", "Poland", "Chile", "Ghana", "Korea", "Wales", "Malta", "Nepal"),
            ),
        ),
    ),
}


def topics(source: SyntheticTopicsSource) -> tuple[str, ...]:
    """The names of the topics that the generator makes."""
    return tuple(TOPICS)[: source.topics]


def prompt(question: str) -> str:
    """A question as corpora and the prompt format ``texts`` of tasks have it; the answer follows after a space."""
    return f"Question: {question}\nAnswer:"


def names(topic: str, source: SyntheticTopicsSource) -> list[str]:
    """The names of a topic's things, all different."""
    first, middle, last = TOPICS[topic].names
    every = [a + b + c for a in first for b in middle for c in last]
    return Random(f"names {source.seed} {topic}").sample(every, source.things)


def paragraphs(topic: str, source: SyntheticTopicsSource) -> list[str]:
    """Prose on every thing: ``source.paragraphs`` texts each, all its facts in an order and wording of their own."""
    found = []
    for name in names(topic, source):
        for number in range(source.paragraphs):
            draw = Random(f"paragraph {source.seed} {topic} {name} {number}")
            sentences = [
                draw.choice(fact.statements).format(name=name, value=_value(topic, name, fact, source))
                for fact in draw.sample(TOPICS[topic].facts, len(TOPICS[topic].facts))
            ]
            found.append(" ".join(sentences))
    return found


def answered(topic: str, source: SyntheticTopicsSource) -> list[tuple[str, str]]:
    """Every question on every thing, with its answer."""
    return [
        (fact.question.format(name=name), _value(topic, name, fact, source))
        for name in names(topic, source)
        for fact in TOPICS[topic].facts
    ]


def questions(topic: str, source: SyntheticTopicsSource) -> list[dict[str, object]]:
    """Every question as multiple choice: ``topic``, ``question``, four ``choices`` and the place of the ``answer``."""
    rows: list[dict[str, object]] = []
    for name in names(topic, source):
        offset = Random(f"places {source.seed} {name}").randrange(CHOICES)
        for number, fact in enumerate(TOPICS[topic].facts):
            value = _value(topic, name, fact, source)
            others = [other for other in fact.values if other != value]
            choices = Random(f"choices {source.seed} {name} {fact.question}").sample(others, CHOICES - 1)
            answer = (offset + number) % CHOICES  # every place is right equally often, as far as that goes
            choices.insert(answer, value)
            question = fact.question.format(name=name)
            rows.append({"topic": TOPICS[topic].title, "question": question, "choices": choices, "answer": answer})
    return rows


def _value(topic: str, name: str, fact: Fact, source: SyntheticTopicsSource) -> str:
    return Random(f"value {source.seed} {topic} {name} {fact.question}").choice(fact.values)
