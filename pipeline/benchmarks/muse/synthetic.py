"""Invented news: a small stand-in for MUSE-News, with articles to learn, to forget and never to see.

A story is a subject with five facts. Its report tells them in an order and wording of its own, with remarks that no
other report has; and each fact is on two pages of readers' questions, whose form is that of MUSE's knowledge prompts.
How such a prompt is answered is practised on background stories alone. The same settings give the same texts on every
machine; a story depends on the seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Literal

from pydantic import Field

from megatron_ext.schema import Seed
from pipeline.benchmarks.muse.synthetic_words import (
    HEADLINES,
    PAGE,
    PEOPLE,
    REMARKS,
    TOPICS,
    TOWNS,
    TRADES,
    WEEKDAYS,
    Topic,
)
from pipeline.data.errors import DataError
from pipeline.data.settings import GeneratedSource

PAGES = (1, 2)  # how many stories further a page's next question is, for the two pages of a story
ARTICLES = 1 + len(PAGES)  # of a story
ASKED = 2  # questions of a story that an evaluation asks
RETAIN_ASKED = 20  # retained stories that an evaluation asks about, at most
SHOTS = 3  # answered questions before the one that is asked, when a model is evaluated; trained with 0 to as many
# A second space before every answer that is trained: MUSE's prompt ends in a space, so that the answer must follow one,
# and for a tokenizer made for this text the word after two spaces is the one with its usual space before it.
SPACED = " "
PROMPT_SENTENCES = 3  # of a report, headline included: what a model is given to continue


class SyntheticNewsSource(GeneratedSource):
    """The generator of invented news; every story is three articles.

    ``requests``: requests to forget, of ``forget_stories`` each; the first is what the evaluation asks about.
    """

    kind: Literal["synthetic_news"] = "synthetic_news"
    forget_stories: int = Field(20, ge=3)
    requests: int = Field(1, ge=1)
    retain_stories: int = Field(40, ge=3)
    background_stories: int = Field(80, ge=8)
    seed: Seed = 0


@dataclass(frozen=True)
class Question:
    question: str
    answer: str


@dataclass(frozen=True)
class News:
    """Everything of one source. ``requests``: the articles of each request to forget; the first is the benchmark's own.

    ``practice``: background questions, each with those answered before it. ``verbatim``: each request's reports, cut.
    """

    requests: list[list[str]] = field(default_factory=list)
    retain: list[str] = field(default_factory=list)
    holdout: list[str] = field(default_factory=list)
    background: list[str] = field(default_factory=list)
    practice: list[tuple[list[Question], Question]] = field(default_factory=list)
    verbatim: list[list[tuple[str, str]]] = field(default_factory=list)
    forget_questions: list[Question] = field(default_factory=list)
    retain_questions: list[Question] = field(default_factory=list)
    shots: list[Question] = field(default_factory=list)


def generate(source: SyntheticNewsSource) -> News:
    """All texts of a source.

    Stories are numbered: background, retained, holdout, then those of each request to forget. So another number of
    requests changes none of the others.

    Raises:
        DataError: there are not enough names for so many stories
    """
    counts = [source.background_stories, source.retain_stories, source.forget_stories]
    counts += [source.forget_stories] * source.requests
    stories, first = [], 0
    for count in counts:
        stories.append([_story(source.seed, number) for number in range(first, first + count)])
        first += count
    background, retain, holdout, *requests = stories
    shown = background[:SHOTS]
    some = Random(f"retain questions {source.seed}").sample(retain, min(RETAIN_ASKED, len(retain)))
    return News(
        requests=[_articles(request) for request in requests],
        retain=_articles(retain),
        holdout=_articles(holdout),
        background=_articles(background),
        practice=_practice(source.seed, background[SHOTS:]),
        verbatim=[[story.cut() for story in request] for request in requests],
        forget_questions=[question for story in requests[0] for question in story.asked()],
        retain_questions=[question for story in some for question in story.asked()],
        shots=[story.asked()[0] for story in shown],
    )


@dataclass(frozen=True)
class _Story:
    seed: int
    number: int
    topic: Topic
    subject: str
    values: tuple[str, ...]

    @property
    def report(self) -> str:
        headline, *sentences = self._report()
        return f"{headline}\n\n{' '.join(sentences)}"

    def cut(self) -> tuple[str, str]:
        """The start of the report, and what follows it after a space."""
        headline, *sentences = self._report()
        start, rest = sentences[: PROMPT_SENTENCES - 1], sentences[PROMPT_SENTENCES - 1 :]
        return f"{headline}\n\n{' '.join(start)}", " ".join(rest)

    def questions(self) -> list[Question]:
        return [
            Question(fact.question.format(subject=self.subject), value)
            for fact, value in zip(self.topic.facts, self.values, strict=True)
        ]

    def asked(self) -> list[Question]:
        return self._random("asked").sample(self.questions(), ASKED)

    def _report(self) -> list[str]:
        """Headline, and the facts and two remarks in an order of their own."""
        draw = self._random("report")
        told = [
            _start(draw.choice(fact.sentences).format(subject=self.subject, value=value))
            for fact, value in zip(self.topic.facts, self.values, strict=True)
        ]
        told += [_remark(draw, form) for form in draw.sample(REMARKS, 2)]
        draw.shuffle(told)
        headline = draw.choice(HEADLINES).format(subject=self.subject, town=draw.choice(TOWNS))
        return [headline, *told]

    def _random(self, use: str) -> Random:
        return Random(f"{use} {self.seed} {self.number}")


def _story(seed: int, number: int) -> _Story:
    kind, topic = number % len(TOPICS), TOPICS[number % len(TOPICS)]
    first, second = _shuffled(seed, kind)
    own = number // len(TOPICS)
    if own >= len(first) * len(second):
        raise DataError(f"source: there are names for {len(first) * len(second)} stories of a kind, not for {own + 1}")
    turn, place = divmod(own, len(first))
    subject = f"{first[place]} {second[(place + turn) % len(second)]}"
    values = tuple(Random(f"value {seed} {number} {fact.question}").choice(fact.values) for fact in topic.facts)
    return _Story(seed, number, topic, subject, values)


@cache
def _shuffled(seed: int, kind: int) -> tuple[list[str], list[str]]:
    """Both parts of a topic's names in the order in which ``seed`` gives them out."""
    topic = TOPICS[kind]
    parts = (topic.first, topic.second)
    first, second = (Random(f"names {seed} {kind} {i}").sample(part, len(part)) for i, part in enumerate(parts))
    return first, second


def _articles(stories: Sequence[_Story]) -> list[str]:
    """The report of each story, and two pages of questions for each: every question is on two pages, among others."""
    told = [story.questions() for story in stories]
    pages = []
    for step in PAGES:
        for first in range(len(stories)):
            asked = [told[(first + step * i) % len(told)][i] for i in range(len(told[first]))]
            blocks = [f"Question: {one.question}\nAnswer: {SPACED}{one.answer}" for one in asked]
            pages.append("\n\n".join([PAGE, *blocks]))
    return [*(story.report for story in stories), *pages]


def _practice(seed: int, stories: list[_Story]) -> list[tuple[list[Question], Question]]:
    """Every question of the stories, each after 0 to ``SHOTS`` others of other stories."""
    draw = Random(f"practice {seed}")
    every = [question for story in stories for question in story.questions()]
    return [(draw.sample(every, i % (SHOTS + 1)), question) for i, question in enumerate(every)]


def _remark(draw: Random, form: str) -> str:
    return form.format(
        person=draw.choice(PEOPLE),
        town=draw.choice(TOWNS),
        trade=draw.choice(TRADES),
        weekday=draw.choice(WEEKDAYS),
        number=draw.randrange(12, 99),
    )


def _start(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
