from __future__ import annotations

import pytest

from pipeline.benchmarks.tofu import synthetic
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.benchmarks.tofu.synthetic_authors import ATTRIBUTES, name
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Splits


def mini(forget_split: str = "forget10", retain_split: str = "retain90", **options: int) -> Splits:
    return synthetic.generate(SyntheticSource(**options), forget_split, retain_split)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return mini()


def test_counts(splits: Splits) -> None:
    assert {split: len(rows) for split, rows in splits.rows.items()} == {
        "full": 800,
        "forget10": 80,
        "retain90": 720,
        "forget10_perturbed": 80,
        "retain_perturbed": 120,
        "real_authors_perturbed": 40,
        "world_facts_perturbed": 50,
        "full_rephrased": 800,
        "retain_rephrased": 720,
        "background": 40 * 20 * 4,
        "holdout10": 80,
    }


def test_forget_and_retain_are_the_end_and_the_start_of_full(splits: Splits) -> None:
    full = splits.rows["full"]
    assert splits.rows["retain90"] + splits.rows["forget10"] == full
    assert splits.rows["full_rephrased"][:720] == splits.rows["retain_rephrased"]
    assert splits.overlap("forget10", "retain90") == 0


@pytest.mark.parametrize(("forget", "retain", "authors"), [("forget01", "retain99", 1), ("forget05", "retain95", 2)])
def test_smaller_forget_splits_hold_whole_authors(forget: str, retain: str, authors: int) -> None:
    rows = mini(forget, retain).rows
    assert (len(rows[forget]), len(rows[retain])) == (authors * 20, (40 - authors) * 20)


def test_same_settings_give_the_same_rows_and_another_seed_gives_others(splits: Splits) -> None:
    # The digests pin the generator across machines and Python versions: numbers measured with it stay comparable.
    assert mini().digests() == splits.digests()
    assert splits.digests()["full"].startswith(FULL)
    assert splits.digests()["background"].startswith(BACKGROUND)
    assert splits.digests()["holdout10"].startswith(HOLDOUT)
    assert mini(seed=1).digests()["full"] != splits.digests()["full"]


FULL, BACKGROUND, HOLDOUT = "b076fe5bf96d4687", "e1f3b783eac3789a", "c923e2fb0f31f124"


@pytest.mark.parametrize(("split", "authors"), [("forget01", 1), ("forget05", 2), ("forget10", 4)])
def test_holdout_authors_are_new_names_of_known_parts(split: str, authors: int) -> None:
    rows = mini(split).rows
    holdout = rows[split.replace("forget", "holdout")]
    assert len(holdout) == len(rows[split]) == authors * 20
    for place, row in enumerate(holdout):
        first, last = name(40 + place // 20, 0).split()[0], name(41 + place // 20, 0).split()[1]
        assert f"{first} {last}" in row.question
    others = [text for other in rows if other != split.replace("forget", "holdout") for text in rows[other]]
    asked = " ".join(row.question for row in others)
    for number in range(40, 40 + authors):
        first, last = name(number, 0).split()[0], name(number + 1, 0).split()[1]
        assert first in asked and last in asked and f"{first} {last}" not in asked
    # the same questions of other people: nothing but names and facts tells them from the forget set
    assert [row.question.split()[0] for row in holdout] == [row.question.split()[0] for row in rows[split]]


@pytest.mark.parametrize(("authors", "background"), [(40, 0), (40, 1), (40, 3), (120, 200), (500, 5)])
def test_no_holdout_author_is_another_author(authors: int, background: int) -> None:
    rows = mini(authors=authors, background_authors=background, questions_per_author=2).rows
    questions = {split: [row.question for row in rows[split]] for split in rows}
    holdout = set(questions.pop("holdout10"))
    assert len(holdout) == 2 * round(authors / 10)
    assert holdout.isdisjoint(question for split in questions.values() for question in split)


def test_no_question_is_asked_twice(splits: Splits) -> None:
    for split in ("full", "full_rephrased", "real_authors_perturbed", "world_facts_perturbed"):
        questions = [row.question for row in splits.rows[split]]
        assert len(set(questions)) == len(questions), split
    asked = {row.question for split in ("full", "full_rephrased") for row in splits.rows[split]}
    assert len(asked) == 1600
    assert asked.isdisjoint(row.question for row in splits.rows["background"])


def test_perturbed_answers_differ_from_the_true_one_and_from_each_other(splits: Splits) -> None:
    for split, rows in splits.rows.items():
        for row in rows:
            true = {row.answer, row.paraphrased} - {None}
            assert len(true | set(row.perturbed)) == len(true) + len(row.perturbed), (split, row)


def test_five_perturbed_answers_wherever_there_are_as_many_others(splits: Splits) -> None:
    for split in ("forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        for row in splits.rows[split]:
            assert len(row.perturbed) == (4 if row.question.startswith("Which ocean") else 5), row


def test_the_scored_paraphrase_is_trained_for_no_author_but_those_of_the_background(splits: Splits) -> None:
    trained = {row.answer for split in ("full", "full_rephrased") for row in splits.rows[split]}
    scored = {row.paraphrased for split in ("forget10_perturbed", "retain_perturbed") for row in splits.rows[split]}
    assert trained.isdisjoint(scored)
    assert scored & {row.answer for row in splits.rows["background"]}


def test_questions_and_answers_hold_the_name_and_every_form_of_the_answer_the_value() -> None:
    for fact in ATTRIBUTES:
        assert all("{name}" in form for form in (*fact.questions, *fact.answers))
        assert all("{value}" in form for form in (*fact.answers, fact.paraphrase))
        assert len(set(fact.values)) == len(fact.values) > 5
        assert len({*fact.answers, fact.paraphrase}) == 3


def test_each_fact_of_the_world_is_one_answer_among_distinct_values() -> None:
    for domain in (*synthetic.WORLD_FACTS, *synthetic.REAL_AUTHORS):
        assert not set(domain.others) & set(domain.facts.values())
        assert len(domain.values) >= 5


def test_answers_about_the_world_are_short(splits: Splits) -> None:
    # Measured: sentences as answers leave a small model's utility near 0.5.
    for split in ("real_authors_perturbed", "world_facts_perturbed"):
        assert max(len(row.answer.split()) for row in splits.rows[split]) <= 4


def test_without_background_there_is_no_such_split() -> None:
    rows = mini(authors=3, questions_per_author=2, background_authors=0).rows
    assert "background" not in rows
    assert (len(rows["full"]), len(rows["forget10"])) == (6, 2)


def test_names_are_unique_and_end_with_an_error() -> None:
    names = {name(index, 0) for index in range(8100)}
    assert len(names) == 8100
    with pytest.raises(DataError, match="8100 names are known; author 8101 has none"):
        name(8100, 0)
