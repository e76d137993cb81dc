import pytest
import torch
from networks import random_matrix, with_weight
from torch import nn

from lrcompress.plan import Choices
from lrcompress.plan.choices import list_choices
from lrcompress.schemes import Call, find_scheme

# Strides make the first 1×1 convolution of the Tucker form dearer in operations than in weights.
TUCKER = {
    "plain": (lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False), (5, 5)),
    "stride": (lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1), (7, 7)),
    "1d": (lambda: nn.Conv1d(7, 5, 4), (9,)),
    "small kernel": (lambda: nn.Conv2d(5, 9, (1, 2), stride=(2, 1)), (6, 6)),
}


def call_of(layer, size):
    output = layer(torch.zeros(1, layer.in_channels, *size))
    return Call(1, size, tuple(output.shape[2:]))


def tucker_choices(make, size, *, seed=0, **options):
    torch.manual_seed(seed)
    layer, scheme = make(), find_scheme("tucker2")
    decomposition = scheme.decompose(layer)
    return layer, decomposition, list_choices(layer, [call_of(layer, size)], {scheme: decomposition}, **options)


def tucker_costs(layer, size, ranks):
    """(parameters, multiply-accumulates) of 1×1, k×k and 1×1 convolutions in a row, counted by hand."""
    outputs, inputs, taps = layer.out_channels, layer.in_channels, layer.weight[0, 0].numel()
    before, after = (torch.tensor(shape).prod().item() for shape in (size, call_of(layer, size).output_size))
    output_rank, input_rank = ranks
    weights = [inputs * input_rank, taps * input_rank * output_rank]
    if output_rank < outputs:
        weights.append(output_rank * outputs)
    return sum(weights), before * weights[0] + after * sum(weights[1:])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "size"), TUCKER.values(), ids=TUCKER.keys())
def test_every_useful_pair_of_tucker_ranks_that_none_beats_is_an_option(make, size, seed):
    layer, decomposition, choices = tucker_choices(make, size, seed=seed)
    kept = {choices.option(index).ranks for index in range(len(choices.ranks))}
    every = {}
    for ranks in torch.cartesian_prod(torch.arange(1, layer.out_channels + 1), torch.arange(1, layer.in_channels + 1)):
        error = float(decomposition.squared_errors(ranks[None])[0])
        costs = tucker_costs(layer, size, ranks.tolist())
        if costs[0] < choices.dense_parameters and costs[1] <= choices.dense_macs:
            every[tuple(ranks.tolist())] = (*costs, error)
    assert kept <= every.keys()
    for ranks, (parameters, macs, error) in every.items():
        others = [values for other, values in every.items() if other != ranks]
        beaten_in_size = any(p <= parameters and e <= error for p, _, e in others)
        beaten_in_time = any(m <= macs and e <= error for _, m, e in others)
        assert beaten_in_size or ranks in kept, ranks
        assert beaten_in_time or ranks in kept, ranks
    assert len(kept) < len(every)


def test_an_option_that_only_useless_ones_beat_is_kept():
    layer, size = nn.Conv2d(12, 24, 3, stride=4, padding=1), (16, 16)
    _, decomposition, choices = tucker_choices(lambda: layer, size)
    kept = {choices.option(index).ranks for index in range(len(choices.ranks))}
    dense = layer.weight.numel()
    useful = {}
    for ranks in torch.cartesian_prod(torch.arange(1, 25), torch.arange(1, 13)):
        parameters, macs = tucker_costs(layer, size, ranks.tolist())
        if parameters < dense and macs <= 16 * dense:  # 4×4 positions
            error = float(decomposition.squared_errors(ranks[None])[0])
            useful[tuple(ranks.tolist())] = (parameters, error)
    for ranks, (parameters, error) in useful.items():
        others = [values for other, values in useful.items() if other != ranks]
        assert ranks in kept or any(p <= parameters and e <= error for p, e in others), ranks


@pytest.mark.parametrize(("make", "size"), TUCKER.values(), ids=TUCKER.keys())
def test_tucker_options_have_their_costs_cheapest_first_and_make_nothing_dearer(make, size):
    layer, decomposition, choices = tucker_choices(make, size)
    (call,) = [call_of(layer, size)]
    assert choices.dense_parameters == layer.weight.numel()
    assert choices.dense_macs == layer.weight.numel() * torch.tensor(call.output_size).prod()
    seen = []
    for index, useful in enumerate(choices.useful.tolist()):
        option = choices.option(index)
        assert (option.parameters, option.macs) == tucker_costs(layer, size, option.ranks)
        assert useful
        assert option.parameters < choices.dense_parameters
        assert option.macs <= choices.dense_macs
        assert option.scheme == "tucker2"
        error = decomposition.squared_errors(torch.tensor([option.ranks]))[0].sqrt()
        assert option.relative_error == pytest.approx(float(error))
        seen.append(option.parameters)
    assert seen == sorted(seen)
    assert choices.useful.all()
    assert len(choices.useful) > 0


def linear_choices(m=12, n=9, *, rows=4, **options):
    layer, scheme = nn.Linear(n, m), find_scheme("matrix")
    layer = with_weight(layer, random_matrix(m, n), None)
    return layer, list_choices(layer, [Call(rows, (), ())], {scheme: scheme.decompose(layer)}, **options)


def test_a_matrix_has_every_rank_with_the_error_of_its_singular_values():
    layer, choices = linear_choices()
    energies = torch.linalg.svdvals(layer.weight.double()).square()
    assert [choices.option(index).ranks for index in range(9)] == [(rank,) for rank in range(1, 10)]
    tails = torch.stack([energies[rank:].sum() for rank in range(1, 10)]) / energies.sum()
    assert torch.allclose(choices.squared_errors, tails, atol=1e-9)
    assert choices.parameters.tolist() == [21 * rank for rank in range(1, 10)]
    assert choices.macs.tolist() == [4 * 21 * rank for rank in range(1, 10)]
    assert choices.useful.tolist() == [21 * rank < 12 * 9 for rank in range(1, 10)]
    assert (choices.dense_parameters, choices.dense_macs) == (108, 432)


def test_all_calls_of_a_layer_count():
    layer, scheme = nn.Linear(9, 12), find_scheme("matrix")
    calls = [Call(5, (), ()), Call(2, (), ())]
    choices = list_choices(layer, calls, {scheme: scheme.decompose(layer)})
    assert choices.dense_macs == 7 * 108
    assert choices.macs[0] == 7 * 21


def test_rounded_ranks_are_multiples_or_full():
    _, choices = linear_choices(round_ranks=4)
    assert [choices.option(index).ranks for index in range(len(choices.ranks))] == [(4,), (8,), (9,)]


def test_rounded_tucker_ranks_are_multiples_or_full_in_each_mode():
    make, size = TUCKER["plain"]
    _, _, plain = tucker_choices(make, size)
    _, _, rounded = tucker_choices(make, size, round_ranks=4)
    assert {row[0] for row in rounded.ranks.tolist()} == {4, 8}
    assert {row[1] for row in rounded.ranks.tolist()} == {4, 6}
    assert len(rounded.ranks) < len(plain.ranks)
    # Pruned among themselves, not by options that are not on offer.
    assert (8, 4) in {rounded.option(index).ranks for index in range(len(rounded.ranks))}


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (5, 5), (9, 9), (10**6, 9)])
def test_the_wanted_rank_is_an_option_or_the_largest_there_is(rank, expected):
    _, choices = linear_choices(wanted_rank=rank)
    assert choices.option(choices.wanted).ranks == (expected,)


def test_the_wanted_rank_holds_in_every_mode_whatever_the_rounding():
    make, size = TUCKER["plain"]  # 6 inputs, 8 outputs
    _, _, choices = tucker_choices(make, size, wanted_rank=7, round_ranks=4)
    assert choices.option(choices.wanted).ranks == (7, 6)


def test_without_a_wanted_rank_there_is_none():
    assert linear_choices()[1].wanted is None


def made_up(parameters, macs, errors, useful):
    count = len(parameters)
    return Choices(
        names=("matrix",),
        schemes=torch.zeros(count, dtype=torch.int64),
        ranks=torch.tensor([[rank, 0, 0] for rank in range(1, count + 1)]),
        squared_errors=torch.tensor(errors, dtype=torch.float64).square(),
        parameters=torch.tensor(parameters),
        macs=torch.tensor(macs),
        useful=torch.tensor(useful),
        dense_parameters=100,
        dense_macs=100,
    )


def test_the_cheapest_option_within_a_tolerance_has_fewest_parameters_then_fewest_operations():
    choices = made_up([10, 20, 20, 30], [10, 40, 25, 5], [0.5, 0.2, 0.25, 0.1], [True] * 4)
    assert choices.cheapest_within(0.6) == 0
    assert choices.cheapest_within(0.3) == 2  # of two with 20 parameters
    assert choices.cheapest_within(0.2) == 1  # just the tolerance is within it
    assert choices.cheapest_within(0.15) == 3
    assert choices.cheapest_within(0.05) is None


def test_options_that_are_not_useful_count_only_where_that_is_asked_for():
    choices = made_up([10, 20, 30], [10, 200, 30], [0.5, 0.2, 0.1], [True, False, True])
    assert choices.cheapest_within(0.2) == 2
    assert choices.cheapest_within(0.2, useful=False) == 1
    assert choices.smallest_useful_error() == pytest.approx(0.1)
    assert made_up([10], [10], [0.5], [False]).smallest_useful_error() is None
    assert made_up([10], [10], [0.5], [False]).cheapest_within(0.9) is None


def test_the_options_of_several_schemes_stand_in_one_order():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1)
    schemes = [find_scheme(name) for name in ("matrix", "spatial", "tucker2")]
    decompositions = {scheme: scheme.decompose(layer) for scheme in schemes}
    choices = list_choices(layer, [Call(1, (5, 5), (5, 5))], decompositions)
    options = [choices.option(index) for index in range(len(choices.ranks))]
    assert [one.parameters for one in options] == sorted(one.parameters for one in options)
    for scheme, decomposition in decompositions.items():
        own = [one for one in options if one.scheme == scheme.name]
        assert own
        errors = decomposition.squared_errors(torch.tensor([one.ranks for one in own])).sqrt()
        assert [one.relative_error for one in own] == pytest.approx(errors.tolist())
    assert sum(one.scheme == "matrix" for one in options) == 8
    assert sum(one.scheme == "spatial" for one in options) == 18


def test_an_option_that_is_larger_but_faster_than_another_is_kept():
    layer, _, choices = tucker_choices(lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1), (16, 16))
    parameters, macs, errors = choices.parameters, choices.macs, choices.squared_errors
    faster = [
        index
        for index in range(len(parameters))
        if bool(((parameters < parameters[index]) & (errors <= errors[index])).any())
    ]
    assert len(faster) > 5  # what only time speaks for
    for index in faster:
        assert not bool(((macs < macs[index]) & (errors <= errors[index])).any())
    assert layer.stride == (2, 2)
