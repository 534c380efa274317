import pytest

from pipeline.metrics.memorisation import exact_memorisation, extraction_strength


@pytest.mark.parametrize(
    ("correct", "strength"),
    [
        ("1111", 1.0),
        ("0111", 0.75),
        ("1011", 0.5),
        ("1101", 0.25),
        ("0001", 0.25),
        ("0000", 0.25),  # as open-unlearning: never 0
        ("1110", 0.25),
        ("1", 1.0),
        ("0", 1.0),
        ("", 0.0),
    ],
)
def test_extraction_strength(correct, strength):
    assert extraction_strength([c == "1" for c in correct]) == strength


def test_extraction_strength_is_open_unlearnings_loop():
    """Its loop, written out: the first k whose suffix agrees, or the last k there is."""
    import itertools

    for n in range(1, 7):
        for bits in itertools.product([False, True], repeat=n):
            for k in range(n):
                if all(bits[k:]):
                    break
            assert extraction_strength(bits) == 1 - k / n


def test_exact_memorisation():
    assert exact_memorisation([True, False, True, True]) == 0.75
    assert exact_memorisation([]) is None
