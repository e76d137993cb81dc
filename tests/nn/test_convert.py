import copy

import pytest
import torch
from low_rank_layers import CASES, like
from networks import relative_difference, tiny_mlp
from torch import nn

from lrcompress.nn import (
    FactoredLinear,
    FactoredSplitLinear,
    LowRankLinear,
    SplitLowRankLinear,
    TuckerConv,
    count_shipped_parameters,
    factored,
    factored_layers,
    trained_layers,
)

SPLIT = [name for name in CASES if name.startswith("split")]
every_split = pytest.mark.parametrize("name", SPLIT)


def split_layer(ranks=(2, 4, 1), *, bias=True):
    return SplitLowRankLinear(7, 15, ranks, bias=bias)


@every_split
def test_a_split_layer_computes_the_same_in_the_form_that_is_trained_and_folded(name):
    _, low_rank = CASES[name]()
    layer, x = factored(low_rank), torch.randn(2, 3, low_rank.in_features)
    assert type(layer) is FactoredSplitLinear
    shipped = layer.fold()
    assert type(shipped) is SplitLowRankLinear
    assert shipped.ranks == low_rank.ranks
    for one in (layer, shipped):
        assert relative_difference(one(x), low_rank(x)) < 1e-5
        assert relative_difference(one(x[0, 0]), low_rank(x[0, 0])) < 1e-5
        assert relative_difference(one.weight, low_rank.weight) < 1e-5
        assert one.bias is None if low_rank.bias is None else torch.equal(one.bias, low_rank.bias)
    assert {k: v.shape for k, v in shipped.state_dict().items()} == {
        k: v.shape for k, v in low_rank.state_dict().items()
    }


@every_split
def test_the_output_of_a_split_layer_is_that_of_a_dense_one_with_its_weight_and_bias(name):
    dense, low_rank = CASES[name]()
    layer, x = factored(low_rank), torch.randn(4, low_rank.in_features)
    assert relative_difference(layer(x), nn.functional.linear(x, layer.weight, layer.bias)) < 1e-5
    assert (layer.bias is None) == (dense.bias is None)
    with torch.no_grad():
        for part in layer.parts:
            part.S.zero_()
    expected = torch.zeros(4, dense.out_features) if dense.bias is None else low_rank.bias.expand(4, -1)
    assert torch.equal(layer(x), expected)


def test_the_gradients_of_a_split_layer_are_those_through_the_dense_one():
    low_rank = split_layer().double()
    layer, x = factored(low_rank), torch.randn(4, 7, dtype=torch.float64)
    direction = torch.randn(4, 15, dtype=torch.float64)
    (layer(x) * direction).sum().backward()
    for part, outer in zip(layer.parts, direction.chunk(3, dim=1), strict=True):
        gradient = outer.T @ x  # of W in x Wᵀ
        assert torch.allclose(part.S.grad[0, :, :, 0], part.U[0].T @ gradient @ part.V[0], atol=1e-12)
        assert torch.allclose(part.bias.grad, outer.sum(0), atol=1e-12)


def test_each_part_of_a_split_layer_has_ranks_of_its_own_and_a_state_of_other_ranks_is_taken_over():
    layer, other = factored(split_layer()), factored(split_layer((1, 1, 3)))
    assert [part.ranks for part in layer.parts] == [(2,), (4,), (1,)]
    layer.load_state_dict(other.state_dict())
    assert [part.ranks for part in layer.parts] == [(1,), (1,), (3,)]
    x = torch.randn(2, 7)
    assert torch.equal(layer(x), other(x))
    assert layer.fold().ranks == (1, 1, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_split_layer_keeps_its_type(dtype):
    layer = factored(split_layer().to(dtype))
    assert {value.dtype for value in layer.state_dict().values()} == {dtype}
    assert {value.dtype for value in layer.fold().state_dict().values()} == {dtype}


def everything():
    """A network with a layer of each form, in the form that is shipped."""
    convolution = nn.Conv2d(4, 6, 3)
    return nn.Sequential(
        nn.Linear(4, 3),
        nn.ModuleDict({"qkv": split_layer(), "proj": LowRankLinear(6, 5, 2, bias=False)}),
        nn.BatchNorm2d(6),
        like(convolution, TuckerConv, (3, 2)),
        like(convolution, TuckerConv, (6, 2)),
        CASES["matrix, groups"]()[1],
        CASES["spatial, 3x3"]()[1],
    )


def in_training(model):
    model = copy.deepcopy(model)
    model[1]["qkv"], model[1]["proj"] = factored(model[1]["qkv"]), factored(model[1]["proj"])
    for index in range(3, 7):
        model[index] = factored(model[index])
    return model


def test_split_layers_are_found_as_a_whole_and_their_parts_as_what_is_trained():
    model = in_training(everything())
    assert list(trained_layers(model)) == ["1.qkv", "1.proj", "3", "4", "5", "6"]
    assert isinstance(trained_layers(model)["1.qkv"], FactoredSplitLinear)
    parts = [f"1.qkv.parts.{index}" for index in range(3)]
    assert list(factored_layers(model)) == [*parts, "1.proj", "3", "4", "5", "6"]


def test_modules_that_are_called_parts_are_not_taken_for_a_split_layers():
    model = nn.ModuleDict(
        {"body": nn.ModuleDict({"parts": nn.ModuleList([FactoredLinear(LowRankLinear(3, 3, 1, bias=True))])})}
    )
    assert list(trained_layers(model)) == list(factored_layers(model)) == ["body.parts.0"]


def test_a_layer_that_is_the_whole_model_is_found():
    assert list(trained_layers(factored(split_layer()))) == [""]
    assert list(trained_layers(factored(LowRankLinear(3, 3, 1, bias=True)))) == [""]


def test_a_network_in_training_is_counted_as_it_will_be_shipped():
    shipped = everything()
    expected = sum(parameter.numel() for parameter in shipped.parameters())
    by_hand = (
        (4 * 3 + 3)
        + ((2 + 4 + 1) * (7 + 5) + 15)
        + 2 * (6 + 5)
        + (6 + 6)
        + (6 * 3 + 3 * 2 * 9 + 4 * 2 + 6)
        + (6 * 2 * 9 + 4 * 2 + 6)
        + (4 * 2 * (3 + 18) + 12)
        + (3 * (18 + 12) + 6)
    )
    assert expected == by_hand
    assert count_shipped_parameters(shipped) == by_hand
    assert count_shipped_parameters(in_training(shipped)) == by_hand


def test_a_network_without_low_rank_layers_is_counted_as_it_is():
    model = tiny_mlp()
    assert trained_layers(model) == factored_layers(model) == {}
    assert count_shipped_parameters(model) == 48 * 40 + 40 + 40 * 24 + 24 + 24 * 4 + 4
