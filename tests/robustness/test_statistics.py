import math
import random

import pytest

from lrcompress.robustness import compare_paired, wilson_interval

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (1, 20), (10, 20), (20, 20), (873, 1000), (9300, 10000)])
def test_the_interval_is_wilsons_formula(k, n):
    share = k / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low, high = wilson_interval(k, n)
    assert low == pytest.approx(centre - half, abs=1e-12)
    assert high == pytest.approx(centre + half, abs=1e-12)
    assert 0 <= low <= share <= high <= 1


def test_more_confidence_gives_a_wider_interval():
    low, high = wilson_interval(15, 20)
    wide_low, wide_high = wilson_interval(15, 20, confidence=0.99)
    assert wide_low < low < high < wide_high


@pytest.mark.parametrize(("lost", "gained"), [(0, 1), (1, 0), (3, 3), (5, 1), (0, 6), (12, 3), (40, 21)])
def test_mcnemar_is_the_exact_two_sided_binomial_test(lost, gained):
    first = [True] * lost + [False] * gained + [True] * 5 + [False] * 4
    second = [False] * lost + [True] * gained + [True] * 5 + [False] * 4
    found = compare_paired(first, second)
    n = lost + gained
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n
    assert (found.lost, found.gained) == (lost, gained)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def test_without_flips_nothing_is_proven():
    assert compare_paired([True, False], [True, False]).p_value == 1.0


def test_outcomes_of_different_lengths_are_not_compared():
    with pytest.raises(ValueError, match="zip"):
        compare_paired([True], [True, False])


def outcomes(both, lost, gained, neither):
    first = [True] * (both + lost) + [False] * (gained + neither)
    return first, [True] * both + [False] * lost + [True] * gained + [False] * neither


TABLES = [(36, 12, 2, 0), (97, 1, 0, 0), (20, 12, 2, 16), (0, 0, 0, 9), (9, 0, 0, 0), (0, 5, 0, 0)]


@pytest.mark.parametrize("table", TABLES)
def test_the_interval_of_a_difference_holds_it_and_turns_with_the_models(table):
    first, second = outcomes(*table)
    found, turned = compare_paired(first, second), compare_paired(second, first)
    assert found.difference == pytest.approx((table[2] - table[1]) / sum(table)) == -turned.difference
    low, high = found.interval
    assert -1 <= low <= found.difference <= high <= 1
    assert low < high
    assert turned.interval == pytest.approx((-high, -low))


def test_models_that_agree_image_by_image_differ_less_surely_than_models_that_do_not():
    low, high = compare_paired(*outcomes(50, 5, 5, 40)).interval
    wide_low, wide_high = compare_paired(*outcomes(30, 25, 25, 20)).interval
    assert wide_low < low < 0 < high < wide_high


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says():
    generator, shares = random.Random(0), (0.62, 0.12, 0.06, 0.2)
    hits = 0
    for _ in range(1000):
        drawn = generator.choices(range(4), shares, k=80)
        low, high = compare_paired(*outcomes(*(drawn.count(kind) for kind in range(4)))).interval
        hits += low <= shares[2] - shares[1] <= high
    assert 930 <= hits <= 975
