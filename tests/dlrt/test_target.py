import itertools

import pytest

from lrcompress.dlrt.target import Annealing, DropTarget
from lrcompress.plan import Budget

REFERENCE = 0.9


def target(fraction=None, *, smallest=0.01):
    return DropTarget(REFERENCE, points=2.0, smallest=smallest, fraction=fraction)


# The accuracy after an epoch, and whether the budget is then to shrink (−1), to stay (0) or to grow (1).
CASES = [(0.95, -1), (0.90, -1), (0.891, -1), (0.889, 0), (0.881, 0), (0.879, 1), (0.5, 1)]


@pytest.mark.parametrize(("accuracy", "direction"), CASES)
@pytest.mark.parametrize("kept", [0.4, 0.3])
def test_the_budget_shrinks_while_little_is_lost_and_grows_when_too_much_is(accuracy, direction, kept):
    driven = target(0.4)
    after = driven.after(accuracy, kept).fraction
    assert after == driven.fraction == driven.policy().fraction
    now = kept if direction <= 0 else 0.4
    assert (after > now) - (after < now) == direction


def test_the_first_budget_follows_what_the_network_has():
    assert 0.3 < target().after(REFERENCE, 0.5).fraction < 0.5
    assert 0.5 < target().after(0.0, 0.5).fraction < 0.7


def test_the_budget_is_one_that_can_be_met_however_long_nothing_is_lost():
    driven, fractions = target(0.9, smallest=0.2), []
    for _ in range(60):
        fractions.append(driven.after(1.0, fractions[-1] if fractions else 0.9).fraction)
    assert fractions == sorted(fractions, reverse=True)
    assert 0.2 < fractions[-1] < 0.25


def test_the_budget_is_never_the_whole_network():
    driven = target(0.5)
    for _ in range(60):
        assert driven.after(0.0, 0.5).fraction < 1
    assert driven.fraction > 0.99


@pytest.mark.parametrize(("accuracy", "reached"), [(0.9, True), (0.88, True), (0.8799, False), (1.0, True)])
def test_the_drop_that_was_asked_for_is_kept_to_the_point(accuracy, reached):
    # 100 · (0.9 − 0.88) is not 2 to the last bit.
    assert target().reached(accuracy) is reached


def test_an_annealed_budget_falls_ever_more_slowly_to_what_was_asked_for():
    annealing = Annealing(Budget(fraction=0.1), 3.0, steps=100)
    fractions = [annealing.policy(position).fraction for position in range(0, 160, 20)]
    assert fractions[0] == pytest.approx(0.3)
    falls = [before - after for before, after in itertools.pairwise(fractions)]
    assert falls == sorted(falls, reverse=True)
    assert all(fall > 0 for fall in falls[:5])
    assert fractions[5:] == [0.1, 0.1, 0.1]


def test_annealing_by_one_is_the_budget_itself():
    annealing = Annealing(Budget(macs=1000), 1.0, steps=10)
    assert {annealing.policy(position) for position in range(12)} == {Budget(macs=1000)}
