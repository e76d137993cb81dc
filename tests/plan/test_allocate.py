import dataclasses
import itertools
import math

import pytest
import torch

from lrcompress.plan.allocate import GAP, Allocation, allocate


def layer(costs, errors, dense_cost):
    return Allocation(torch.tensor(costs, dtype=torch.int64), torch.tensor(errors, dtype=torch.float64), dense_cost)


def random_layers(seed, *, count=3, options=5):
    """Layers whose options neither come in order nor lie on a line; some are worse than others in both respects."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for index in range(count):
        dense = int(torch.randint(20, 60, (1,), generator=generator))
        costs = torch.randint(1, dense, (options,), generator=generator)
        errors = torch.rand(options, generator=generator, dtype=torch.float64)
        layers[f"layer {index}"] = Allocation(costs, errors, dense)
    return layers


def points(one):
    """(cost, error) by option, the dense layer under None."""
    listed = zip(one.costs.tolist(), one.squared_errors.tolist(), strict=True)
    return {**dict(enumerate(listed)), None: (one.dense_cost, 0.0)}


def total(layers, chosen):
    """(cost, error) of the whole model."""
    picked = [points(one)[chosen[name]] for name, one in layers.items()]
    return sum(cost for cost, _ in picked), sum(error for _, error in picked)


def all_totals(layers):
    """(cost, error) of every combination there is."""
    for choice in itertools.product(*(points(one) for one in layers.values())):
        yield total(layers, dict(zip(layers, choice, strict=True)))


def smallest(layers):
    return sum(min(cost for cost, _ in points(one).values()) for one in layers.values())


def dense(layers):
    return sum(one.dense_cost for one in layers.values())


@pytest.mark.parametrize("seed", range(6))
def test_a_layer_that_may_not_stay_dense_is_given_an_option_whatever_the_budget(seed):
    layers = {name: dataclasses.replace(one, dense_cost=None) for name, one in random_layers(seed).items()}
    for budget in (sum(int(one.costs.min()) for one in layers.values()), 60, 10**6):
        chosen = allocate(layers, max(budget, sum(one.smallest_cost for one in layers.values())))
        assert None not in chosen.values()
    for name, one in layers.items():  # at last, the one of the smallest error
        assert float(one.squared_errors[chosen[name]]) == float(one.squared_errors.min())


def test_what_a_fixed_layer_does_not_cost_is_left_to_the_others():
    # As a dense layer the first would take all of it, without an error; but it has one option only.
    fixed, free = layer([10], [0.9], 100), layer([10, 100], [0.5, 0.1], 200)
    fixed = dataclasses.replace(fixed, dense_cost=None)
    assert allocate({"fixed": fixed, "free": free}, 110) == {"fixed": 0, "free": 1}


@pytest.mark.parametrize("seed", range(12))
def test_the_result_is_the_best_of_all_combinations_wherever_one_price_explains_it(seed):
    """The combination that is best when a unit of cost has some price is best of all that cost no more."""
    layers = random_layers(seed)
    everything = list(all_totals(layers))
    found = set()
    for price in torch.logspace(-5, 1, 60, dtype=torch.float64).tolist():
        cost, error = min(everything, key=lambda pair: pair[1] + price * pair[0])
        used, left = total(layers, allocate(layers, cost))
        assert used <= cost
        assert left <= error + 1e-12
        found.add(cost)
    assert len(found) >= 4


def smallest_errors(layers):
    """The least error of every budget up to that of the dense model, by dynamic programming over the budgets."""
    best = torch.zeros(dense(layers) + 1, dtype=torch.float64)
    for one in layers.values():
        candidates = [torch.full_like(best, math.inf)]
        for cost, error in points(one).values():
            shifted = torch.full_like(best, math.inf)
            shifted[cost:] = best[: len(best) - cost] + error
            candidates.append(shifted)
        best = torch.stack(candidates).min(0).values
    return best.tolist()


def spectral_layers(seed, *, count):
    """Layers of all ranks that remove parameters, of spectra that fall off at different rates."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for index in range(count):
        m, n = torch.randint(6, 40, (2,), generator=generator).tolist()
        decay = 2 * torch.rand((), generator=generator, dtype=torch.float64)
        energy = torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -decay
        ranks = torch.arange(1, (m * n - 1) // (m + n) + 1)
        tails = 1 - energy.cumsum(0) / energy.sum()
        layers[f"layer {index}"] = Allocation(ranks * (m + n), tails[ranks - 1], m * n)
    return layers


@pytest.mark.parametrize("seed", range(6))
def test_every_budget_is_kept_and_none_allows_for_less_than_one_combination_of_all(seed):
    layers = random_layers(seed)
    everything = sorted(all_totals(layers))
    for budget in range(smallest(layers), dense(layers) + 5):
        used, found = total(layers, allocate(layers, budget))
        assert used <= budget
        assert found <= (1 + GAP) * min(error for cost, error in everything if cost <= budget) + 1e-15


@pytest.mark.parametrize(("seed", "count"), [(0, 2), (1, 3), (2, 5), (3, 8), (4, 12)])
def test_between_the_corners_of_the_hull_the_error_is_the_smallest_one_too(seed, count):
    layers = spectral_layers(seed, count=count)
    exact = smallest_errors(layers)
    steps = 0
    for budget in range(smallest(layers), dense(layers) + 1, 13 if count < 8 else 61):
        used, found = total(layers, allocate(layers, budget))
        assert used <= budget
        assert found <= (1 + GAP) * exact[budget] + 1e-15
        steps += exact[budget] > 0
    assert steps > 20


@pytest.mark.parametrize("seed", range(4))
def test_ways_that_are_taken_for_one_where_they_are_too_many_cost_no_more_than_the_gap(seed, monkeypatch):
    monkeypatch.setattr("lrcompress.plan.allocate._MANY_WAYS", 20)
    monkeypatch.setattr("lrcompress.plan.allocate._WAYS_AT_ONCE", 50)
    layers = spectral_layers(10 + seed, count=9)
    exact = smallest_errors(layers)
    for budget in range(smallest(layers), dense(layers), 97):
        _, found = total(layers, allocate(layers, budget))
        assert found <= (1 + GAP) * exact[budget]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_a_layers_options_is_of_no_matter(seed):
    layers = random_layers(seed, options=8)
    turned = {name: Allocation(x.costs.flip(0), x.squared_errors.flip(0), x.dense_cost) for name, x in layers.items()}
    for budget in range(smallest(layers), dense(layers), 7):
        assert total(layers, allocate(layers, budget)) == total(turned, allocate(turned, budget))


def test_the_whole_budget_leaves_everything_dense():
    layers = random_layers(0)
    assert set(allocate(layers, dense(layers)).values()) == {None}


def test_the_smallest_budget_gives_every_layer_its_cheapest_option():
    layers = random_layers(1)
    assert allocate(layers, smallest(layers)) == {name: int(one.costs.argmin()) for name, one in layers.items()}
    with pytest.raises(ValueError, match="1 too small"):
        allocate(layers, smallest(layers) - 1)


def test_of_options_that_cost_the_same_the_one_of_the_smallest_error_is_taken():
    assert allocate({"a": layer([5, 5, 5], [0.3, 0.1, 0.2], 9)}, 6) == {"a": 1}


def test_an_option_that_is_worse_and_costs_more_is_never_taken():
    layers = {"a": layer([2, 4, 6], [0.5, 0.7, 0.1], 9)}
    assert [allocate(layers, budget)["a"] for budget in range(2, 10)] == [0, 0, 0, 0, 2, 2, 2, None]


def test_a_layer_that_no_option_makes_cheaper_stays_dense():
    layers = {"narrow": layer([], [], 9), "wide": layer([16, 32], [0.4, 0.1], 64)}
    assert allocate(layers, 9 + 16) == {"narrow": None, "wide": 0}


def test_the_layer_where_a_step_removes_most_error_for_its_cost_gets_it():
    steep = layer([16, 32, 48], [0.5, 0.01, 0.005], 64)
    flat = layer([16, 32, 48], [0.06, 0.05, 0.04], 64)
    assert allocate({"steep": steep, "flat": flat}, 48) == {"steep": 1, "flat": 0}
    dear = layer([16, 320, 480], [0.5, 0.01, 0.005], 640)
    assert allocate({"dear": dear, "flat": flat}, 16 + 64) == {"dear": 0, "flat": None}


def test_what_is_left_goes_to_a_step_beside_the_hull():
    # By cost: 10 → 16 removes 0.3, but 10 → 30 is worth more for its cost and does not fit.
    one = layer([10, 16, 30], [0.9, 0.6, 0.0625], 40)
    assert allocate({"a": one}, 29) == {"a": 1}
    assert allocate({"a": one}, 30) == {"a": 2}


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
@pytest.mark.parametrize("count", [12, 33])
def test_a_flat_spectrum_whose_steps_are_all_worth_the_same_keeps_the_budget(count, order):
    ranks = list(range(1, count))
    if order == "falling":
        ranks.reverse()
    if order == "shuffled":
        ranks = [ranks[index] for index in torch.randperm(len(ranks), generator=torch.Generator().manual_seed(0))]
    one = layer([3 * rank for rank in ranks], [(count - rank) / count for rank in ranks], 3 * count)
    for budget in range(3, 3 * count + 1):
        chosen = allocate({"a": one}, budget)["a"]
        assert (count if chosen is None else ranks[chosen]) == budget // 3


def test_without_layers_and_with_a_budget_beyond_all_numbers_there_is_nothing_to_search():
    assert allocate({}, 0) == {}
    layers = random_layers(0)
    assert set(allocate(layers, 10**30).values()) == {None}
