"""Each metric against its formula, written out on small numbers."""

import json
import math
import warnings
from itertools import combinations

import pytest

from pipeline.metrics.aggregate import any_of, harmonic_mean, ks_p_value, mean
from pipeline.metrics.probability import normalised_probability, probability, share
from pipeline.metrics.text import repeats_itself, rouge_f1, rouge_recall, rouge_scores
from pipeline.metrics.truth_ratio import (
    arithmetic_truth_ratio,
    closer_to_1_better,
    prob_mean,
    true_better,
    truth_ratio,
)


def test_probability_is_the_geometric_mean_over_tokens():
    token_probabilities = [0.5, 0.25, 0.1]
    avg_loss = -sum(math.log(p) for p in token_probabilities) / 3
    assert probability(avg_loss) == pytest.approx((0.5 * 0.25 * 0.1) ** (1 / 3))
    assert probability(1e6) == 0.0


def test_any_of_is_the_share_of_draws_with_a_good_one():
    for n, held, k in ((4, 0, 2), (5, 1, 2), (5, 2, 3), (6, 5, 2), (3, 3, 1)):
        draws = list(combinations([i < held for i in range(n)], k))
        assert any_of(n, held, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_normalised_probability():
    losses = [-math.log(p) for p in (0.3, 0.2, 0.1)]
    assert normalised_probability(losses[0], losses[1:]) == pytest.approx(0.3 / (0.3 + 0.2 + 0.1 + 1e-10), abs=1e-15)
    assert normalised_probability(1e6, [1e6]) == 0.0  # nothing has probability: 0 / 1e-10


def test_truth_ratio_takes_the_geometric_mean_of_wrong_answers():
    wrong, paraphrased = (0.4, 0.1), 0.5
    ratio = truth_ratio(-math.log(paraphrased), [-math.log(p) for p in wrong])
    assert ratio == pytest.approx(math.sqrt(0.4 * 0.1) / (0.5 + 1e-10))
    assert ratio != pytest.approx((0.4 + 0.1) / 2 / 0.5)  # the arithmetic mean of TOFU's text


@pytest.mark.parametrize(
    ("ratio", "closer", "true"), [(0.0, 0.0, 1.0), (0.25, 0.25, 0.75), (1.0, 1.0, 0.0), (4.0, 0.25, 0.0)]
)
def test_truth_ratio_aggregators(ratio, closer, true):
    assert closer_to_1_better(ratio) == pytest.approx(closer, abs=1e-9)
    assert true_better(ratio) == pytest.approx(true)


def test_harmonic_mean():
    assert harmonic_mean([0.5, 0.25, 1.0]) == pytest.approx(3 / (1 / 0.5 + 1 / 0.25 + 1 / 1.0))


def test_harmonic_mean_is_exactly_zero_where_a_value_is():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert harmonic_mean([0.9] * 8 + [0.0]) == 0.0


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_harmonic_mean_refuses(bad):
    with pytest.raises(ValueError, match="at least 0"):
        harmonic_mean([0.5, bad])


@pytest.mark.parametrize(("n", "expected"), [(40, 1.86e-23), (200, 1.94e-119), (400, 1.06e-239)])
def test_ks_saturates_at_the_published_values(n, expected):
    low, high = [i / n for i in range(n)], [2 + i / n for i in range(n)]
    assert ks_p_value(low, high) == pytest.approx(expected, rel=5e-3)


def test_ks_small_sample_by_counting():
    # 1, 2 | 3, 4 in order: of the 4!/(2! 2!) = 6 arrangements of two pairs, 2 separate them completely.
    assert ks_p_value([1.0, 2.0], [3.0, 4.0]) == pytest.approx(2 / 6)


def test_ks_with_itself_and_under_inversion():
    ratios, other = [0.2, 0.5, 0.7, 1.3, 2.0], [0.1, 0.3, 0.4, 0.6, 0.65]
    assert ks_p_value(ratios, ratios) == 1.0
    assert ks_p_value([1 / r for r in ratios], [1 / r for r in other]) == pytest.approx(ks_p_value(ratios, other))


def test_arithmetic_truth_ratio_and_share_by_hand():
    correct, wrong = -math.log(0.4), [-math.log(0.2), -math.log(0.1)]
    assert arithmetic_truth_ratio(correct, wrong) == pytest.approx((0.2 + 0.1) / 2 / 0.4)
    assert share(correct, wrong) == pytest.approx(0.4 / (0.4 + 0.2 + 0.1))
    assert prob_mean(correct, wrong) == pytest.approx(0.4 / (0.4 + math.sqrt(0.2 * 0.1) + 1e-10))


def test_vanishing_probabilities_do_not_overflow():
    assert arithmetic_truth_ratio(5000.0, [1.0, 2.0]) == math.exp(700)
    assert true_better(arithmetic_truth_ratio(5000.0, [1.0])) == 0.0
    assert share(5000.0, [1.0]) == pytest.approx(0.0, abs=1e-300)
    assert share(5000.0, [5000.0]) == 0.5
    assert prob_mean(5000.0, [5000.0]) == 0.0  # open-unlearning's small number wins


def test_mean():
    assert mean([0.1] * 10) == 0.1  # summed without rounding error


def test_rouge_recall_is_over_the_reference():
    # longest common subsequence "the cat mat" of the reference's 4 words; as a bag of words, all 4 are found
    found = rouge_recall(["the cat likes mat"], ["likes and the cat has one mat here"])
    assert found["rougeL"] == [pytest.approx(3 / 4)]
    assert found["rouge1"] == [pytest.approx(4 / 4)]


def test_rouge_stems_words_and_counts_repeats_once():
    assert rouge_recall(["writing novels"], ["writes novel"])["rougeL"] == [1.0]
    assert rouge_recall(["tea tea coffee"], ["tea coffee"])["rouge1"] == [pytest.approx(2 / 3)]


def test_rouge_of_an_empty_answer_is_zero():
    assert rouge_recall(["some answer"], [""]) == {"rouge1": [0.0], "rougeL": [0.0]}


def test_rouge_refuses_unequal_numbers():
    with pytest.raises(ValueError, match="shorter"):
        rouge_recall(["one", "two"], ["one"])


def test_rouge_of_one_answer_is_that_of_the_column():
    """With stems: "walked" and "walks" are one word."""
    reference, said = "She walked home in the rain", "He walks home"
    found = rouge_scores(reference, said)
    assert found == pytest.approx({"rouge1_recall": 2 / 6, "rougeL_recall": 2 / 6, "rougeL_f1": 2 * 2 / (6 + 3)})
    column = rouge_recall([reference], [said])
    assert (column["rouge1"], column["rougeL"]) == ([found["rouge1_recall"]], [found["rougeL_recall"]])
    assert rouge_f1([reference], [said], stemmer=True) == [found["rougeL_f1"]]
    assert rouge_f1([reference], [said], stemmer=False) == pytest.approx([2 * 1 / (6 + 3)])


@pytest.mark.parametrize(
    "text",
    [
        "the the the the the the the the the",
        "He was born in Lima. He was born in Lima. He was born in Lima. He was born in Lima.",
        "." * 40,
        "a" * 200,
        "Her name is Ana" + " and Ana" * 20,
        "a b a b a b a b",  # 2 of 5 runs of four are distinct, but 2 of 4 of five
    ],
)
def test_repetition_is_found(text):
    assert repeats_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no no no",
        "a a a a a a a",  # one piece too short
        "a a b a a b a a b",  # 3 of 6 runs of four are distinct, but 3 of 7 of three
        "The author's full name is Hsiao Yun-Hwa.",
        "He was born in Lima. He was born in Lima.",
        "Her father is a florist and her mother is a game developer, and both of them read to her every evening.",
    ],
)
def test_ordinary_text_does_not_repeat_itself(text):
    assert not repeats_itself(text)


def test_real_answers(shared_data):
    """TOFU's own answers: each recalls itself, none repeats itself, and a paraphrase recalls part."""
    path = shared_data / "tofu" / "forget10_perturbed.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = [row["answer"] for row in rows]
    assert rouge_recall(answers, answers)["rougeL"] == [1.0] * 400
    assert not [answer for answer in answers if repeats_itself(answer)]
    partial = rouge_recall(answers, [row["paraphrased_answer"] for row in rows])
    assert 0.4 < mean(partial["rougeL"]) <= mean(partial["rouge1"]) < 0.95
