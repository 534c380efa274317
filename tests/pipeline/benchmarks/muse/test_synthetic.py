from __future__ import annotations

import pytest

from pipeline.benchmarks.muse.synthetic import (
    ARTICLES,
    ASKED,
    RETAIN_ASKED,
    SHOTS,
    News,
    Question,
    SyntheticNewsSource,
    generate,
)
from pipeline.benchmarks.muse.synthetic_words import PAGE
from pipeline.data.errors import DataError


def made(**options: int) -> News:
    return generate(SyntheticNewsSource(**options))


@pytest.fixture(scope="module")
def news() -> News:
    return made(requests=2)


def test_counts(news: News) -> None:
    assert [len(request) for request in news.requests] == [20 * ARTICLES, 20 * ARTICLES]
    assert (len(news.retain), len(news.holdout), len(news.background)) == (40 * 3, 20 * 3, 80 * 3)
    assert len(news.practice) == (80 - SHOTS) * 5 and len(news.shots) == SHOTS
    assert [len(cut) for cut in news.verbatim] == [20, 20]
    assert (len(news.forget_questions), len(news.retain_questions)) == (20 * ASKED, RETAIN_ASKED * ASKED)


def test_same_settings_give_the_same_texts_and_another_seed_gives_others(news: News) -> None:
    assert made(requests=2) == news
    assert set(made(seed=1).retain).isdisjoint(news.retain)


def test_more_folds_change_nothing_else(news: News) -> None:
    one = made()
    assert one.requests == news.requests[:1] and one.verbatim == news.verbatim[:1]
    for part in ("retain", "holdout", "background", "practice", "forget_questions", "retain_questions"):
        assert getattr(one, part) == getattr(news, part)


def test_no_text_is_there_twice_and_no_page_mixes_parts(news: News) -> None:
    parts = [*news.requests, news.retain, news.holdout, news.background]
    texts = [text for part in parts for text in part]
    assert len(set(texts)) == len(texts)
    asked = [{line for text in part for line in text.splitlines() if line.startswith("Question: ")} for part in parts]
    assert sum(map(len, asked)) == len(set().union(*asked)) == (20 + 20 + 40 + 20 + 80) * 5


def answered(texts: list[str]) -> set[tuple[str, str]]:
    """The questions that pages answer."""
    found = set()
    for text in texts:
        for block in text.split("\n\n"):
            if block.startswith("Question: "):
                question, answer = block.removeprefix("Question: ").split("\nAnswer:  ")
                found.add((question, answer))
    return found


def test_every_question_that_is_asked_is_answered_where_it_must_be_and_nowhere_else(news: News) -> None:
    def pairs(questions: list[Question]) -> set[tuple[str, str]]:
        return {(one.question, one.answer) for one in questions}

    forget, retain, background = answered(news.requests[0]), answered(news.retain), answered(news.background)
    assert len(forget) == 20 * 5 and pairs(news.forget_questions) <= forget and pairs(news.retain_questions) <= retain
    shown = pairs(news.shots) | pairs([one for shots, asked in news.practice for one in (*shots, asked)])
    assert shown <= background
    for request in news.requests:  # its reports name the values too
        reports = " ".join(text for text in request if not text.startswith(PAGE)).lower()
        assert all(answer.lower() in reports for _, answer in answered(request))


def test_practice_has_none_to_all_shots(news: News) -> None:
    assert {len(shots) for shots, _ in news.practice} == set(range(SHOTS + 1))
    assert all(asked not in shots for shots, asked in news.practice)


def test_verbatim_texts_are_reports_cut_in_two(news: News) -> None:
    for cut, request in zip(news.verbatim, news.requests, strict=True):
        for (start, rest), report in zip(cut, request[:20], strict=True):
            assert f"{start} {rest}" == report and len(rest) > len(start)


def test_more_stories_than_names() -> None:
    with pytest.raises(DataError, match="names for 240 stories of a kind, not for 241"):
        made(background_stories=2000)
