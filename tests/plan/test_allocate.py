import itertools

import pytest
import torch

from lrcompress.plan.allocate import Allocation, allocate


def layer(sigma, m, n):
    squares = torch.tensor(sigma, dtype=torch.float64).square()
    errors = torch.tensor([float(squares[rank:].sum() / squares.sum()) for rank in range(1, len(sigma))])
    useful = (m * n - 1) // (m + n)
    return Allocation(errors[:useful], m + n, m * n)


def random_layers(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for index in range(count):
        m, n = (int(size) for size in torch.randint(6, 12, (2,), generator=generator))
        sigma = torch.rand(min(m, n), generator=generator).pow(2).sort(descending=True).values
        layers[f"layer {index}"] = layer(sigma.tolist(), m, n)
    return layers


def cost(layers, ranks):
    return sum(x.dense_cost if ranks[name] == 0 else ranks[name] * x.cost_per_rank for name, x in layers.items())


def error(layers, ranks):
    return sum(0.0 if ranks[name] == 0 else float(x.squared_errors[ranks[name] - 1]) for name, x in layers.items())


def all_choices(layers):
    """Every combination of ranks, 0 for dense."""
    for choice in itertools.product(*(range(len(x.squared_errors) + 1) for x in layers.values())):
        yield dict(zip(layers, choice, strict=True))


def smallest(layers):
    return sum(x.smallest_cost for x in layers.values())


@pytest.mark.parametrize("seed", range(8))
def test_no_combination_of_the_same_cost_has_less_error_along_the_hull(seed):
    """At budgets that the hull meets exactly the result is the best of all; elsewhere the budget is kept."""
    layers = random_layers(seed)
    choices = [(cost(layers, c), error(layers, c)) for c in all_choices(layers)]
    dense = sum(x.dense_cost for x in layers.values())
    exact = 0
    for budget in range(smallest(layers), dense + 1):
        ranks = allocate(layers, budget)
        used, found = cost(layers, ranks), error(layers, ranks)
        assert used <= budget
        best = min(e for c, e in choices if c <= budget)
        # The best is never far: the steps on both sides of the budget enclose it.
        exact += found <= best + 1e-12
        cheaper = (
            min(e for c, e in choices if c <= max(budget - max(x.dense_cost for x in layers.values()), 0))
            if (budget - max(x.dense_cost for x in layers.values()) >= smallest(layers))
            else float("inf")
        )
        assert found <= cheaper + 1e-12
    assert exact > 0.5 * (dense - smallest(layers))


def test_the_whole_budget_leaves_everything_dense():
    layers = random_layers(0)
    assert set(allocate(layers, sum(x.dense_cost for x in layers.values())).values()) == {0}


def test_the_smallest_budget_gives_rank_one_everywhere():
    layers = random_layers(1)
    assert set(allocate(layers, smallest(layers)).values()) == {1}
    with pytest.raises(ValueError, match="1 too small"):
        allocate(layers, smallest(layers) - 1)


def test_a_layer_that_no_rank_makes_smaller_stays_dense():
    layers = {"narrow": Allocation(torch.zeros(0), 10, 9), "wide": layer([4.0, 2.0, 1.0, 0.5] * 2, 8, 8)}
    assert allocate(layers, 9 + 16) == {"narrow": 0, "wide": 1}


def test_more_budget_never_gives_more_error_than_the_step_that_did_not_fit():
    layers = random_layers(5)
    budgets = range(smallest(layers), sum(x.dense_cost for x in layers.values()) + 1)
    errors = [error(layers, allocate(layers, budget)) for budget in budgets]
    assert errors[0] == max(errors)
    assert errors[-1] == 0


def test_the_layer_where_a_rank_removes_most_error_for_its_cost_gets_it():
    steep = layer([1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 8, 8)
    flat = layer([1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 8, 8)
    assert allocate({"steep": steep, "flat": flat}, 48) == {"steep": 2, "flat": 1}
