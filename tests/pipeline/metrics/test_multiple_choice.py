"""Accuracies of one question by hand."""

import numpy as np
import pytest

from pipeline.metrics.multiple_choice import accuracy, accuracy_per_length


@pytest.mark.parametrize(
    ("log_probs", "gold", "expected"),
    [([-3, -1, -2], 1, 1), ([-3, -1, -2], 2, 0), ([-1, -1, -2], 0, 1), ([-1, -1, -2], 1, 0), ([-3, -1, -2], [0, 1], 1)],
)
def test_the_most_likely_choice_counts_and_of_equal_ones_the_first(log_probs, gold, expected):
    assert accuracy(log_probs, gold) == expected


def test_long_choices_are_not_put_at_a_disadvantage():
    log_probs, lengths = [-4.0, -6.0], [2, 6]  # -2 and -1 a character
    assert (accuracy(log_probs, 1), accuracy_per_length(log_probs, lengths, 1)) == (0, 1)


@pytest.mark.parametrize("gold", [3, -1, [], [0, 3]])
def test_a_right_answer_is_one_of_the_choices(gold):
    with pytest.raises(ValueError, match="among 3 choices"):
        accuracy([-1, -2, -3], gold)


@pytest.mark.parametrize(
    ("log_probs", "lengths", "best"), [([-3, -1], [4, 0], 0), ([-1, -3], [0, 4], 1), ([-1, -2], [0, 0], 0)]
)
def test_an_empty_choice_is_the_least_likely_as_in_the_harness(log_probs, lengths, best):
    with np.errstate(divide="ignore"):
        assert np.argmax(np.array(log_probs) / np.array(lengths)) == best
    assert [accuracy_per_length(log_probs, lengths, place) for place in (0, 1)] == [best == 0, best == 1]


def test_a_length_is_not_negative():
    with pytest.raises(ValueError, match="length is negative"):
        accuracy_per_length([-1, -2], [-1, 2], 1)
