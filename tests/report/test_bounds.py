from math import comb

import pytest

from lrcompress.report.bounds import drop_bounds, share_bounds


def test_bounds_of_a_share_are_those_of_the_binomial_tail():
    # No success among n has probability (1 − p)ⁿ; so 1 − 0.05^(1/n) is refuted at 5 %.
    low, high = share_bounds(0, 20, confidence=0.95)
    assert (low, high) == (0, pytest.approx(1 - 0.05 ** (1 / 20)))
    low, high = share_bounds(20, 20, confidence=0.95)
    assert (low, high) == (pytest.approx(0.05 ** (1 / 20)), 1)


@pytest.mark.parametrize("count", [1, 8])
def test_each_bound_of_a_drop_holds_as_often_as_it_says(count):
    """Over all outcomes of `count` images, weighted by their probability under many pairs of flip rates."""
    bounds = {
        (lost, gained): drop_bounds(lost, gained, count, confidence=0.95)
        for lost in range(count + 1)
        for gained in range(count + 1 - lost)
    }
    for p in (index / 16 for index in range(17)):
        for q in (index / 16 for index in range(17) if index / 16 + p <= 1):
            below = above = 0.0
            for (lost, gained), (low, high) in bounds.items():
                ways = comb(count, lost) * comb(count - lost, gained)
                probability = ways * p**lost * q**gained * (1 - p - q) ** (count - lost - gained)
                below += probability * (low <= p - q + 1e-9)
                above += probability * (high >= p - q - 1e-9)
            assert min(below, above) >= 0.95


def test_bounds_of_a_drop_mirror_each_other_and_hold_the_drop():
    low, high = drop_bounds(30, 10, 500, confidence=0.95)
    assert low < 20 / 500 < high
    assert drop_bounds(10, 30, 500, confidence=0.95) == pytest.approx((-high, -low))


def test_a_bound_is_hardly_wider_than_the_normal_approximation_where_that_holds():
    # 1.645 standard errors of lost − gained beyond it: 300 − 310 of 10,000 images.
    normal = -0.001 + 1.645 * (610 / 10_000**2) ** 0.5
    assert normal < drop_bounds(300, 310, 10_000, confidence=0.95)[1] < normal + 0.001


def test_one_point_takes_about_four_hundred_images_without_a_flip():
    assert drop_bounds(0, 0, 400, confidence=0.95)[1] > 0.01 > drop_bounds(0, 0, 415, confidence=0.95)[1]


def test_more_confidence_gives_wider_bounds():
    widths = [drop_bounds(5, 2, 200, confidence=confidence)[1] for confidence in (0.8, 0.95, 0.999)]
    assert widths == sorted(set(widths))
