"""The two invented topics: what is asked is told, the same every time, and nothing else."""

from collections import Counter

import pytest

from pipeline.benchmarks.lm_eval import synthetic as topics
from pipeline.benchmarks.lm_eval.synthetic import SyntheticTopicsSource

SOURCE = SyntheticTopicsSource(things=12, paragraphs=3)


@pytest.mark.parametrize("topic", topics.TOPICS)
def test_every_fact_is_told_in_every_paragraph_and_asked_once(topic):
    names, texts = topics.names(topic, SOURCE), topics.paragraphs(topic, SOURCE)
    assert len(set(names)) == 12 and len(texts) == 36 and len(set(texts)) == 36
    answers = topics.answered(topic, SOURCE)
    assert len(answers) == 12 * 5
    for question, answer in answers:
        (name,) = [name for name in names if name in question]
        told = [text for text in texts if name in text]
        assert len(told) == 3 and all(f" {answer}" in text for text in told)


@pytest.mark.parametrize("topic", topics.TOPICS)
def test_a_question_offers_its_answer_and_three_others_of_its_kind(topic):
    rows, answers = topics.questions(topic, SOURCE), topics.answered(topic, SOURCE)
    for row, (question, answer) in zip(rows, answers, strict=True):
        assert row["question"] == question and row["choices"][row["answer"]] == answer
        (fact,) = [fact for fact in topics.TOPICS[topic].facts if set(row["choices"]) <= set(fact.values)]
        assert len(set(row["choices"])) == 4 and fact.question.split("{name}")[0] in question
    places = Counter(row["answer"] for row in rows)
    assert sorted(places) == [0, 1, 2, 3] and max(places.values()) < 2 * min(places.values())


def test_values_of_a_topic_answer_one_question_only():
    for topic in topics.TOPICS.values():
        values = [value for fact in topic.facts for value in fact.values]
        assert len(set(values)) == len(values) == 40


def test_a_thing_depends_on_seed_and_number_alone():
    def all_of(source):
        return [(topics.paragraphs(t, source), topics.questions(t, source)) for t in topics.TOPICS]

    assert all_of(SOURCE) == all_of(SOURCE)
    assert all_of(SOURCE) != all_of(SyntheticTopicsSource(things=12, paragraphs=3, seed=1))
    fewer = SyntheticTopicsSource(things=12, paragraphs=1)
    assert topics.paragraphs("minerals", fewer) == topics.paragraphs("minerals", SOURCE)[::3]
    assert not set(topics.names("minerals", SOURCE)) & set(topics.names("instruments", SOURCE))
