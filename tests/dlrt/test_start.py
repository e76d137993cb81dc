import pytest
from trainings import options

from lrcompress.dlrt import EpochRecord
from lrcompress.dlrt.start import compare_with_start
from lrcompress.plan import Budget

WHOLE = 10_000


def record(accuracy, parameters, *, robust=None):
    return EpochRecord(0, None, accuracy, robust, {}, parameters, frozen=True)


def compare(start, best, *, images=1000, **settings):
    return compare_with_start(start, best, options(**settings), images=images, classes=10, whole_parameters=WHOLE)


def test_a_training_that_gains_or_keeps_says_nothing():
    assert compare(record(0.8, 500), record(0.9, 500)) == (False, "")
    assert compare(record(0.9, 500), record(0.9, 500)) == (False, "")


def test_a_loss_at_the_same_size_keeps_the_start_and_has_both_figures():
    kept, said = compare(record(0.93, 1500), record(0.81, 1500))
    assert kept
    assert said.startswith(
        "training lost 12.00 points against the truncation it started from: 93.00 → 81.00 % of 1,000"
    )
    assert "1,500 → 1,500 parameters" in said
    assert "the truncation itself is written" in said
    assert "--lr" in said


def test_a_loss_that_chance_explains_is_told_and_the_trained_state_kept():
    kept, said = compare(record(0.93, 500), record(0.928, 500))
    assert not kept
    assert "lost 0.20 points" in said
    assert "itself is written" not in said


@pytest.mark.parametrize("limits", [{"policy": Budget(fraction=0.1)}, {"policy": Budget(parameters=1000)}], ids=str)
@pytest.mark.parametrize(("parameters", "within"), [(1000, True), (1001, False)])
def test_a_start_within_the_budget_is_small_enough(limits, parameters, within):
    kept, said = compare(record(0.93, parameters), record(0.81, 970), **limits)
    assert kept is within
    assert said  # nearly as small


def test_a_start_that_is_larger_is_not_kept():
    assert compare(record(0.93, 501), record(0.81, 500))[0] is False


@pytest.mark.parametrize(("lost", "told"), [(0.12, True), (0.01, False)])
def test_beside_a_far_larger_start_only_a_great_loss_is_told(lost, told):
    kept, said = compare(record(0.93, 5000), record(0.93 - lost, 500))
    assert not kept
    assert bool(said) is told


def test_a_largest_drop_asks_for_a_loss():
    changes = {"max_drop": 20.0, "policy": Budget(fraction=0.9)}
    assert compare(record(0.93, 5000), record(0.81, 500), **changes) == (False, "")
    assert compare(record(0.93, 500), record(0.81, 500), **changes)[0]


@pytest.mark.parametrize("changes", [{"beta": 0.1}, {"max_kappa": 5.0}], ids=str)
def test_a_start_without_the_conditioning_that_was_asked_for_is_not_kept_but_told(changes):
    kept, said = compare(record(0.93, 500), record(0.81, 500), **changes)
    assert not kept
    assert "lost 12.00 points" in said


def test_against_a_start_that_guesses_nothing_is_lost():
    assert compare(record(0.11, 500), record(0.05, 500)) == (False, "")


def test_robust_accuracy_is_what_is_compared_where_there_is_one():
    start, best = record(0.93, 500, robust=0.2), record(0.85, 500, robust=0.6)
    assert compare(start, best) == (False, "")
    kept, said = compare(best, start)
    assert kept
    assert "60.00 → 20.00 % of 1,000 perturbed held-out images" in said
