import pytest

from lrcompress.errors import OptionError
from lrcompress.pipeline import MaxDrop
from lrcompress.pipeline.search import EVALUATIONS, search_budget
from lrcompress.plan import Budget, CompressionPlan, LayerPlan, Smallest

PARAMETERS = 10_000  # one 80×100 layer, and 2,000 elsewhere


def make(policy):
    """One layer whose rank is the largest that fits the budget."""
    rank = 1 if isinstance(policy, Smallest) else int((policy.fraction * PARAMETERS - 2000) // 180)
    layer = LayerPlan("a", "Linear", (80, 100), "matrix", (rank,), relative_error=0.1, parameters=180 * rank)
    if rank >= 45:
        layer = LayerPlan("a", "Linear", (80, 100), "dense", reason="too large")
    return CompressionPlan(policy=policy.describe(), layers=(layer,))


def accuracy_above(rank, *, otherwise):
    def accuracy_of(plan):
        layer = plan.layers[0]
        return 0.9 if layer.scheme == "dense" or layer.ranks[0] >= rank else otherwise

    return accuracy_of


def search(accuracy_of, *, points=0.5, make=make):
    seen = []
    plan = search_budget(
        MaxDrop(points),
        parameters=PARAMETERS,
        dense_accuracy=0.903,
        make=make,
        accuracy_of=accuracy_of,
        on_evaluation=seen.append,
    )
    return plan, seen


@pytest.mark.parametrize("rank", [3, 11, 29, 41])
def test_the_smallest_budget_that_keeps_the_accuracy_is_found_to_two_percent(rank):
    plan, seen = search(accuracy_above(rank, otherwise=0.85))
    best = (2000 + 180 * rank) / PARAMETERS
    assert plan.layers[0].ranks[0] >= rank
    assert best <= plan.policy["fraction"] <= 1.02 * best
    assert len(seen) == EVALUATIONS
    # The plan is that of the smallest evaluated budget within the drop.
    assert plan.policy["fraction"] == min(one.budget for one in seen if one.drop <= 0.5)
    assert plan.policy["evaluations"] == [vars(one) for one in seen]
    assert seen[0].drop in (pytest.approx(0.3), pytest.approx(5.3))


def test_a_drop_of_just_the_points_that_are_allowed_is_allowed():
    # 0.903 − 0.898 is 0.5000000000000004 points in floating point.
    plan, seen = search(accuracy_above(11, otherwise=0.898))
    assert {round(one.drop, 9) for one in seen} <= {0.3, 0.5}
    assert plan.layers[0].ranks[0] < 11


def test_a_drop_that_no_smaller_model_keeps_is_refused_with_the_mildest_that_was_tried():
    with pytest.raises(OptionError, match=r"loses at most 0.5 points: with 9\d\.\d % of the parameters it loses 5.30"):
        search(accuracy_above(45, otherwise=0.85))


def test_a_network_that_cannot_become_smaller_is_refused():
    def dense(policy):
        return CompressionPlan(policy={}, layers=(LayerPlan("a", "Linear", (2, 2), "dense", reason="small"),))

    with pytest.raises(OptionError, match="no layer can be made smaller"):
        search(accuracy_above(1, otherwise=0.0), make=dense)


@pytest.mark.parametrize("points", [0.0, -1.0, 100.0, float("nan"), float("inf")])
def test_a_drop_out_of_range_is_refused(points):
    with pytest.raises(OptionError, match="--max-drop"):
        MaxDrop(points)


def test_budgets_descend_while_the_accuracy_holds():
    _, seen = search(accuracy_above(1, otherwise=0.0))
    budgets = [one.budget for one in seen]
    assert budgets == sorted(budgets, reverse=True)
    assert make(Budget(fraction=budgets[-1])).layers[0].ranks == (1,)
