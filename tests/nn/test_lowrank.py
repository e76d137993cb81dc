import copy

import pytest
import torch
from low_rank_layers import CASES, like
from networks import example_input, relative_difference, with_weight
from torch import nn

from lrcompress.nn import CONVOLUTIONS as PLAIN_CONVOLUTIONS
from lrcompress.nn import (
    LowRankLinear,
    SameConv2d,
    SplitLowRankLinear,
    dense_weight,
)

PLAIN = (nn.Linear, *PLAIN_CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, SameConv2d)


every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


@every_case
def test_a_low_rank_layer_computes_what_a_dense_one_with_its_weight_and_bias_does(make):
    dense, low_rank = make()
    assert low_rank.weight.shape == dense.weight.shape
    assert (low_rank.bias is None) == (dense.bias is None)
    expected = with_weight(dense, low_rank.weight, low_rank.bias)
    x = example_input(dense)
    for image in (x, x[..., 1:] if not isinstance(dense, nn.Linear) else x[0]):  # an odd and an even width
        assert low_rank(image).shape == expected(image).shape
        assert relative_difference(low_rank(image), expected(image)) < 1e-5


@every_case
def test_a_low_rank_layer_is_made_of_plain_layers_and_of_nothing_else(make):
    _, low_rank = make()
    layers = [module for module in low_rank.modules() if not list(module.children())]
    assert 2 <= len(layers) <= 4
    assert all(type(layer) in PLAIN for layer in layers)
    held = {id(parameter) for layer in layers for parameter in layer.parameters()}
    assert held == {id(parameter) for parameter in low_rank.parameters()}
    assert not list(low_rank.buffers())


@every_case
def test_only_the_last_layer_has_a_bias(make):
    _, low_rank = make()
    names = [name for name, _ in low_rank.named_parameters() if name.endswith("bias")]
    assert all(name.startswith("expand") for name in names)
    assert (low_rank.bias is None) == (not names)
    if names:
        assert torch.equal(low_rank.bias, torch.cat([low_rank.get_parameter(name) for name in names]))


@every_case
def test_layers_are_made_without_values_where_they_are_asked_for_there(make):
    dense, low_rank = make()
    empty = like(dense, type(low_rank), low_rank.ranks, device="meta", dtype=torch.float16)
    assert empty.ranks == low_rank.ranks
    assert all(parameter.is_meta and parameter.dtype == torch.float16 for parameter in empty.parameters())


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: LowRankLinear(5, 4, 2, bias=True), {"reduce.weight", "expand.weight", "expand.bias"}),
        (lambda: LowRankLinear(5, 4, 2, bias=False), {"reduce.weight", "expand.weight"}),
        (
            lambda: SplitLowRankLinear(5, 6, (1, 2), bias=True),
            {"reduce.weight", "expand.0.weight", "expand.0.bias", "expand.1.weight", "expand.1.bias"},
        ),
        (lambda: CASES["matrix, 3x3"]()[1], {"reduce.weight", "expand.weight", "expand.bias"}),
        (lambda: CASES["spatial, 3x3"]()[1], {"reduce.weight", "expand.weight", "expand.bias"}),
        (lambda: CASES["tucker, 3x3"]()[1], {"reduce.weight", "core.weight", "expand.weight", "expand.bias"}),
        (lambda: CASES["tucker, all outputs, 3x3"]()[1], {"reduce.weight", "expand.weight", "expand.bias"}),
    ],
)
def test_tensors_are_called_by_what_they_do(make, names):
    assert set(make().state_dict()) == names


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("matrix, stride and padding", [(2, 3, 3, 3), (5, 2, 1, 1)]),
        ("matrix, groups", [(8, 2, 3, 3), (12, 2, 1, 1)]),  # two channels for each of four groups
        ("matrix, transposed 2d, groups", [(6, 2, 3, 3), (9, 2, 1, 1)]),
        ("matrix, 3d", [(2, 3, 3, 2, 3), (5, 2, 1, 1, 1)]),
        ("spatial, not square, same", [(3, 3, 3, 1), (5, 3, 1, 5)]),
        ("spatial, 3d", [(3, 3, 3, 1, 1), (5, 3, 1, 2, 3)]),
        ("tucker, stride and padding", [(2, 3, 1, 1), (3, 2, 3, 3), (5, 3, 1, 1)]),
        ("tucker, 1d", [(2, 4, 1), (3, 2, 3), (6, 3, 1)]),
        ("tucker, all outputs, 3x3", [(2, 4, 1, 1), (6, 2, 3, 3)]),
        ("split", [(6, 7), (5, 2), (5, 1), (5, 3)]),
    ],
)
def test_weights_have_the_shapes_of_the_scheme(name, shapes):
    _, low_rank = CASES[name]()
    assert [tuple(value.shape) for key, value in low_rank.named_parameters() if key.endswith("weight")] == shapes


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("matrix, linear", (2,)),
        ("matrix, groups", (2,)),  # of each group
        ("matrix, transposed 2d, groups", (2,)),
        ("spatial, 3d", (3,)),
        ("tucker, 3x3", (3, 2)),
        ("tucker, all outputs, 3x3", (6, 2)),
        ("split", (2, 1, 3)),
    ],
)
def test_ranks_are_those_asked_for(name, ranks):
    assert CASES[name]()[1].ranks == ranks


def random_parts(bias, ranks=(2, 4, 1)):
    return [LowRankLinear(7, 5, rank, bias=bias) for rank in ranks]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_parts_puts_out_what_each_of_them_does_one_after_the_other(bias):
    parts, x = random_parts(bias), torch.randn(2, 3, 7)
    whole = SplitLowRankLinear.of(parts)
    assert (whole.in_features, whole.out_features, whole.ranks) == (7, 15, (2, 4, 1))
    assert torch.allclose(whole(x), torch.cat([part(x) for part in parts], dim=-1), atol=1e-6)
    assert (whole.bias is None) is not bias
    assert not {id(p) for p in whole.parameters()} & {id(p) for part in parts for p in part.parameters()}


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_parts_falls_into_these_parts_again(bias):
    parts = random_parts(bias)
    again = SplitLowRankLinear.of(parts).split()
    assert len(again) == 3
    for part, returned in zip(parts, again, strict=True):
        assert (returned.in_features, returned.out_features, returned.ranks) == (7, 5, part.ranks)
        state = returned.state_dict()
        assert set(state) == set(part.state_dict())
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parts_share_nothing_with_the_whole_and_have_its_type(dtype):
    whole = SplitLowRankLinear(4, 6, (1, 2), bias=True, dtype=dtype)
    before = copy.deepcopy(whole.state_dict())
    for part in whole.split():
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert {value.dtype for value in SplitLowRankLinear.of(whole.split()).state_dict().values()} == {dtype}


CONVOLUTIONAL = {name: make for name, make in CASES.items() if not isinstance(make()[0], nn.Linear)}


@pytest.mark.parametrize("make", CONVOLUTIONAL.values(), ids=CONVOLUTIONAL.keys())
def test_what_parents_ask_a_convolution_for_is_answered_as_by_the_dense_one(make):
    dense, low_rank = make()
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding_mode"):
        assert getattr(low_rank, name) == getattr(dense, name)
    if not isinstance(dense, SameConv2d):
        assert low_rank.padding == dense.padding
    assert low_rank.transposed == dense.transposed
    if dense.transposed:
        assert low_rank.output_padding == dense.output_padding


@pytest.mark.parametrize("name", ["matrix, linear", "split"])
def test_what_parents_ask_a_linear_layer_for_is_answered_as_by_the_dense_one(name):
    dense, low_rank = CASES[name]()
    assert (low_rank.in_features, low_rank.out_features) == (dense.in_features, dense.out_features)


@pytest.mark.parametrize("name", ["matrix, linear", "split", "tucker, 3x3"])
def test_gradients_reach_every_factor(name):
    dense, low_rank = CASES[name]()
    low_rank(example_input(dense)).square().sum().backward()
    assert all(parameter.grad.norm() > 0 for parameter in low_rank.parameters())


def test_the_dense_weight_is_the_product_taken_in_float64():
    layer = LowRankLinear(200, 3, 150, bias=False)
    expected = layer.expand.weight.double() @ layer.reduce.weight.double()
    assert torch.equal(dense_weight(layer), expected.detach())
    assert not torch.equal(layer.weight.double(), expected)


@every_case
def test_the_dense_weight_is_close_to_the_weight_and_leaves_the_layer_as_it_is(make):
    _, low_rank = make()
    before = copy.deepcopy(low_rank.state_dict())
    weight = dense_weight(low_rank)
    assert weight.dtype == torch.float64
    assert not weight.requires_grad
    assert relative_difference(low_rank.weight, weight) < 1e-6
    assert all(torch.equal(value, before[name]) for name, value in low_rank.state_dict().items())
