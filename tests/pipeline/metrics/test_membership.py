import math
import random
import zlib

import pytest

from pipeline.metrics.membership import auc, lowest, min_k, min_k_plus_plus, priv_leak, zlib_ratio


def test_min_k_takes_the_lowest_share_rounded_down_and_one_at_least():
    log_probs = [-1.0, -5.0, -0.5, -3.0, -2.0, -0.1]
    assert min_k(log_probs, 0.4) == (5.0 + 3.0) / 2
    assert min_k(log_probs, 0.1) == 5.0
    assert min_k(log_probs, 1.0) == pytest.approx(11.6 / 6)
    assert lowest(log_probs, 0.1, at_least_one=False) == []


def test_min_k_plus_plus_standardises():
    log_probs, means, variances = [-4.0, -1.0, -9.0], [-2.0, -1.5, -1.0], [4.0, 0.25, 0.0]
    standard = [-2.0 / 2, 0.5 / 0.5, -8.0 / 1e-3]
    assert min_k_plus_plus(log_probs, means, variances, 0.7) == pytest.approx(-(standard[2] + standard[0]) / 2)


def test_zlib_ratio():
    assert zlib_ratio(2.0, "naïve naïve") == 2.0 / len(zlib.compress("naïve naïve".encode()))


def test_auc_counts_pairs():
    draw = random.Random(0)
    members = [draw.randrange(8) for _ in range(17)]
    others = [draw.randrange(3, 11) for _ in range(23)]
    pairs = [1.0 if o > m else 0.5 if o == m else 0.0 for o in others for m in members]
    assert auc(members, others) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auc([0.1, 0.2], [0.3, 0.4]) == 1.0 and auc([1.0], [1.0]) == 0.5


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.inf])])
def test_auc_of_nothing_or_of_what_is_no_number_is_refused(members, others):
    with pytest.raises(ValueError, match=r"at least one of each|not finite"):
        auc(members, others)


def test_priv_leak_has_muses_ends():
    # MUSE's constant for News is retrain's AUC ranked the other way round.
    retrain = 1 - 0.4772
    assert priv_leak(retrain, retrain) == 0
    assert priv_leak(1.0, retrain) == pytest.approx(-100, abs=1e-6)
    assert priv_leak(0.0, retrain) == pytest.approx(109.56, abs=0.01)
