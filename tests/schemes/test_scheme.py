"""What every scheme promises, for every layer that it fits."""

import copy

import pytest
import torch
from networks import ALL_LAYERS, CONVOLUTIONS, example_input, relative_difference, with_weight
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.nn import weight_matrices
from lrcompress.schemes import SCHEMES, Call, Metric, count_positions
from lrcompress.schemes.scheme import channels, dense_macs, dense_parameters

LAYERS = ALL_LAYERS | {
    "more inputs than outputs": lambda: nn.Conv2d(7, 2, (3, 2)),
    "blocks.0.attn.qkv": lambda: nn.Linear(7, 18),
    "attn.in_proj": lambda: nn.Linear(9, 12, bias=False),
    "one.to_qkv": lambda: nn.Linear(1, 3),
}
CASES = {
    f"{scheme.name}, {name}": (lambda make=make: make().double(), scheme)
    for name, make in LAYERS.items()
    for scheme in SCHEMES.values()
    if scheme.fits(make(), name)
}
every_case = pytest.mark.parametrize(("make", "scheme"), CASES.values(), ids=CASES.keys())


def some_ranks(decomposition):
    """The first, the last and a few ranks in between."""
    ranks = decomposition.ranks()
    chosen = torch.linspace(0, len(ranks) - 1, min(len(ranks), 4)).long()
    return [tuple(row) for row in ranks[chosen].tolist()]


def filled(layer, scheme, decomposition, ranks):
    """The low-rank layer, with the bias of the dense one."""
    low_rank = scheme.build(layer, ranks)
    decomposition.fill_(low_rank, ranks)
    if layer.bias is not None:
        biases = [parameter for name, parameter in low_rank.named_parameters() if name.endswith("bias")]
        with torch.no_grad():
            for part, value in zip(biases, layer.bias.chunk(len(biases)), strict=True):
                part.copy_(value)
    return low_rank


def counted(module, x):
    """(output, multiply-accumulates as torch counts them)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = module(x)
    return y, counter.get_total_flops() // 2


def positions_of(layer, x, y):
    if isinstance(layer, nn.Linear):
        return count_positions([Call(len(x), tuple(x.shape[1:-1]), tuple(y.shape[1:-1]))])
    return count_positions([Call(len(x), tuple(x.shape[2:]), tuple(y.shape[2:]))])


@every_case
def test_at_full_rank_nothing_is_lost(make, scheme):
    layer = make()
    x, decomposition, full = example_input(layer), scheme.decompose(layer), scheme.largest_ranks(layer)
    low_rank = filled(layer, scheme, decomposition, full)
    assert relative_difference(low_rank(x), layer(x)) < 1e-12
    assert relative_difference(low_rank.weight, layer.weight) < 1e-12
    assert float(decomposition.squared_errors(torch.tensor([full]))) == 0


@every_case
def test_ranks_go_from_one_to_full(make, scheme):
    layer = make()
    ranks, full = scheme.decompose(layer).ranks(), scheme.largest_ranks(layer)
    assert ranks.shape[1] == len(full) == scheme.modes
    assert ranks[0].tolist() == [1] * scheme.modes
    assert tuple(ranks[-1].tolist()) == full
    assert (ranks >= 1).all()
    assert (ranks <= torch.tensor(full)).all()
    assert len(ranks.unique(dim=0)) == len(ranks)


@every_case
def test_below_full_rank_the_output_is_that_of_the_dense_layer_with_the_weight_of_the_low_rank_one(make, scheme):
    layer = make()
    x, decomposition = example_input(layer), scheme.decompose(layer)
    for ranks in some_ranks(decomposition):
        low_rank = filled(layer, scheme, decomposition, ranks)
        assert relative_difference(low_rank(x), with_weight(layer, low_rank.weight, None)(x)) < 1e-12


@every_case
def test_predicted_errors_are_those_that_are_made(make, scheme):
    layer = make()
    decomposition = scheme.decompose(layer)
    chosen = some_ranks(decomposition)
    predicted = decomposition.squared_errors(torch.tensor(chosen))
    assert predicted.dtype == torch.float64
    for ranks, squared in zip(chosen, predicted, strict=True):
        made = relative_difference(filled(layer, scheme, decomposition, ranks).weight, layer.weight)
        assert float(squared) == pytest.approx(made**2, rel=1e-7, abs=1e-14)


@every_case
def test_errors_lie_between_zero_and_one_and_never_grow_with_a_rank(make, scheme):
    decomposition = scheme.decompose(make())
    ranks = decomposition.ranks()
    errors = decomposition.squared_errors(ranks)
    assert (errors >= 0).all()
    assert (errors <= 1).all()
    no_smaller = (ranks[:, None] >= ranks[None]).all(2)  # in every mode
    assert (errors[:, None] <= errors[None] + 1e-15)[no_smaller].all()


@every_case
def test_costs_are_those_that_torch_counts(make, scheme):
    layer = make()
    x, decomposition = example_input(layer), scheme.decompose(layer)
    chosen = some_ranks(decomposition)
    parameters = scheme.parameters(layer, torch.tensor(chosen))
    macs = scheme.macs(layer, torch.tensor(chosen), positions_of(layer, x, layer(x)))
    for ranks, promised_parameters, promised_macs in zip(chosen, parameters.tolist(), macs.tolist(), strict=True):
        low_rank = scheme.build(layer, ranks)
        weights = [value for name, value in low_rank.named_parameters() if not name.endswith("bias")]
        assert promised_parameters == sum(weight.numel() for weight in weights)
        assert promised_macs == counted(low_rank, x)[1]


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_costs_of_the_dense_layer_are_those_that_torch_counts(make):
    layer = make()
    x = example_input(layer)
    y, macs = counted(layer, x)
    assert dense_macs(layer, positions_of(layer, x, y)) == macs
    assert dense_parameters(layer) == sum(parameter.numel() for parameter in layer.parameters()) - (
        0 if layer.bias is None else layer.bias.numel()
    )


@every_case
def test_the_spectrum_has_the_norm_of_the_weight_and_descends(make, scheme):
    layer = make()
    decomposition = scheme.decompose(layer)
    for ranks in some_ranks(decomposition):
        low_rank = filled(layer, scheme, decomposition, ranks)
        spectrum = scheme.spectrum(low_rank)
        assert spectrum.dtype == torch.float64
        assert not spectrum.requires_grad
        assert (spectrum[:-1] >= spectrum[1:]).all()
        assert float(spectrum.norm()) == pytest.approx(float(low_rank.weight.detach().norm()))


@every_case
def test_what_is_kept_gives_the_same_layers_up_to_the_kept_ranks(make, scheme):
    layer = make()
    decomposition = scheme.decompose(layer)
    chosen = some_ranks(decomposition)
    largest = chosen[len(chosen) // 2]
    within = [ranks for ranks in chosen if all(r <= limit for r, limit in zip(ranks, largest, strict=True))]
    before = [copy.deepcopy(filled(layer, scheme, decomposition, ranks).state_dict()) for ranks in within]
    errors = decomposition.squared_errors(torch.tensor(within))
    assert decomposition.keep_(largest) > 0
    assert torch.equal(decomposition.squared_errors(torch.tensor(within)), errors)
    for ranks, values in zip(within, before, strict=True):
        after = filled(layer, scheme, decomposition, ranks).state_dict()
        assert all(torch.equal(after[name], value) for name, value in values.items())


@every_case
def test_neither_the_dense_layer_nor_the_bias_of_the_low_rank_one_is_touched(make, scheme):
    layer = make()
    before, decomposition = copy.deepcopy(layer.state_dict()), scheme.decompose(layer)
    ranks = some_ranks(decomposition)[-1]
    low_rank = scheme.build(layer, ranks)
    with torch.no_grad():
        for parameter in low_rank.parameters():
            parameter.fill_(7)
    decomposition.fill_(low_rank, ranks)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    for name, value in low_rank.state_dict().items():
        assert bool((value == 7).all()) == name.endswith("bias")
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in low_rank.parameters())
    assert (low_rank.bias is None) == (layer.bias is None)


@every_case
def test_layers_are_built_on_the_device_and_of_the_type_of_the_dense_one(make, scheme):
    layer = make().to("meta", torch.bfloat16)
    low_rank = scheme.build(layer, scheme.largest_ranks(layer))
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in low_rank.parameters())


@every_case
def test_layers_of_fewer_digits_are_as_exact_as_these(make, scheme):
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 3e-2)):
        layer = make().to(dtype)
        decomposition = scheme.decompose(layer)
        chosen = some_ranks(decomposition)[-2:]
        for ranks, squared in zip(chosen, decomposition.squared_errors(torch.tensor(chosen)), strict=True):
            low_rank = filled(layer, scheme, decomposition, ranks)
            assert low_rank.weight.dtype == dtype
            made = relative_difference(low_rank.weight, layer.weight)
            assert made == pytest.approx(float(squared.sqrt()), abs=tolerance)


@every_case
def test_the_spectrum_of_the_dense_layer_is_that_of_the_low_rank_one_of_full_rank(make, scheme):
    layer = make()
    decomposition = scheme.decompose(layer)
    found, in_passing = scheme.dense_spectrum(layer), decomposition.dense_spectrum()
    sigma = scheme.spectrum(filled(layer, scheme, decomposition, scheme.largest_ranks(layer)))
    assert found.dtype == in_passing.dtype == torch.float64
    assert len(found) == len(in_passing) == sum(min(one.shape) for one in scheme.truncated_matrices(layer))
    assert float(found.norm()) == pytest.approx(
        float(layer.weight.detach().norm())
    )  # an unfolding has every weight once
    for values in (found, in_passing):
        assert (values[:-1] >= values[1:]).all()
        assert torch.allclose(values, sigma[: len(values)], atol=1e-7 * float(sigma[0]))
    assert (sigma[len(found) :] < 1e-7 * sigma[0]).all()


@every_case
def test_in_the_metric_of_images_no_spectrum_of_the_weight_is_found_in_passing(make, scheme):
    layer = make()
    outputs = [matrix @ matrix.T for matrix in weight_matrices(layer)]
    inputs = torch.eye(weight_matrices(layer).shape[2], dtype=torch.float64)
    assert scheme.decompose(layer, Metric(torch.stack(outputs), inputs)).dense_spectrum() is None


@every_case
def test_the_same_rank_in_every_mode_is_held_down_by_the_largest(make, scheme):
    layer = make()
    for rank in (1, 3, 1000):
        expected = tuple(min(rank, full) for full in scheme.largest_ranks(layer))
        assert scheme.uniform_ranks(layer, rank) == expected
        scheme.build(layer, expected)


def test_positions_are_summed_over_all_calls_and_their_batches():
    calls = [Call(2, (5, 7), (3, 4)), Call(1, (6, 6), (6, 2))]
    positions = count_positions(calls)
    assert positions.inputs == 2 * 35 + 36
    assert positions.outputs == 2 * 12 + 12
    assert positions.between == 2 * 3 * 7 + 6 * 6  # the rows of the output, the columns of the input


def test_positions_of_linear_layers_and_of_three_axes_are_counted_by_hand():
    linear = count_positions([Call(3, (5,), (5,)), Call(1, (), ())])
    assert (linear.inputs, linear.outputs, linear.between) == (16, 16, 16)
    cubes = count_positions([Call(1, (4, 5, 6), (2, 3, 3))])
    assert (cubes.inputs, cubes.outputs, cubes.between) == (120, 18, 2 * 5 * 6)


def test_a_layer_that_is_not_called_costs_no_operations():
    layer, positions = CONVOLUTIONS["3x3"](), count_positions([])
    assert dense_macs(layer, positions) == 0
    for scheme in (SCHEMES["matrix"], SCHEMES["spatial"], SCHEMES["tucker2"]):
        assert int(scheme.macs(layer, torch.tensor([scheme.largest_ranks(layer)]), positions)) == 0


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 5), (5, 3, 1)),
        (nn.Conv2d(4, 6, (3, 2), groups=2), (6, 4, 6)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (6, 4, 3)),
    ],
)
def test_channels_are_those_of_all_groups(layer, expected):
    assert channels(layer) == expected
