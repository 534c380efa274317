from megatron_ext.inference.lookup import FEWEST, MOST, Lookup


def test_what_followed_the_same_tokens_is_guessed():
    assert Lookup([1, 2, 3, 4, 5, 6, 1, 2, 3]).guess(10) == [4, 5]
    assert Lookup([9, 2, 3, 4, 5, 6, 1, 2, 3]).guess(10) == []
    assert Lookup([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]).guess(1) == [5]  # what followed last
    assert Lookup([1, 2]).guess(10) == Lookup([]).guess(10) == Lookup([1, 2, 3, 1, 2, 3]).guess(0) == []


def test_a_guess_goes_on_where_the_text_ends():
    lookup = Lookup([1, 2, 1, 2, 1])
    for _ in range(3):
        lookup.judge(2, 2)
    assert lookup.guess(9) == [2, 1] * 4 + [2]
    assert Lookup([5, 5, 5, 5]).guess(9) == [5] * FEWEST


def test_guesses_become_longer_while_they_are_right():
    lookup = Lookup([5, 5, 5, 5])
    for size in (FEWEST, 2 * FEWEST, 4 * FEWEST, MOST, MOST):
        assert len(lookup.guess(100)) == min(size, MOST)
        lookup.judge(min(size, MOST), min(size, MOST))
    lookup.judge(MOST, 5)
    assert len(lookup.guess(100)) == 5
    lookup.judge(0, 0)
    assert len(lookup.guess(100)) == 5
    lookup.judge(5, 0)
    assert len(lookup.guess(100)) == FEWEST


def test_what_is_added_is_found():
    lookup = Lookup([1, 2, 3])
    for token in (7, 8, 1, 2, 3):
        lookup.add(token)
    assert lookup.guess(5) == [7, 8]
