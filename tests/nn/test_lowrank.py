import copy

import pytest
import torch
from networks import (
    ALL_LAYERS,
    CONVOLUTIONS,
    LINEAR_LAYERS,
    OTHER_AXES,
    SAME_CONVOLUTIONS,
    example_input,
    relative_difference,
    with_weight,
)
from torch import nn

from lrcompress.nn import (
    CONVOLUTIONS as PLAIN_CONVOLUTIONS,
)
from lrcompress.nn import (
    ConvGeometry,
    LowRankLinear,
    MatrixConv,
    SameConv2d,
    SpatialConv,
    SplitLowRankLinear,
    TuckerConv,
    dense_weight,
)

PLAIN = (nn.Linear, *PLAIN_CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, SameConv2d)


def like(dense, kind, ranks, **changes):
    """A low-rank layer in the place of a dense one, with random values."""
    factory = {"bias": dense.bias is not None, "dtype": dense.weight.dtype} | changes
    if isinstance(dense, nn.Linear):
        return kind(dense.in_features, dense.out_features, ranks, **factory)
    return kind(dense.in_channels, dense.out_channels, ranks, geometry=ConvGeometry.of(dense), **factory)


def is_ungrouped(make):
    return isinstance(make(), PLAIN_CONVOLUTIONS) and make().groups == 1


UNGROUPED = {name: make for name, make in (CONVOLUTIONS | SAME_CONVOLUTIONS | OTHER_AXES).items() if is_ungrouped(make)}
SEVERAL_AXES = {name: make for name, make in UNGROUPED.items() if not name.startswith("1d")}

# (dense layer, low-rank layer) by name.
CASES = {}
for name, make in ALL_LAYERS.items():
    kind = LowRankLinear if name in LINEAR_LAYERS else MatrixConv
    CASES[f"matrix, {name}"] = lambda make=make, kind=kind: (make(), like(make(), kind, 2))
for name, make in SEVERAL_AXES.items():
    CASES[f"spatial, {name}"] = lambda make=make: (make(), like(make(), SpatialConv, 3))
for name, make in UNGROUPED.items():
    CASES[f"tucker, {name}"] = lambda make=make: (make(), like(make(), TuckerConv, (3, 2)))
    CASES[f"tucker, all outputs, {name}"] = lambda make=make: (
        make(),
        like(make(), TuckerConv, (make().out_channels, 2)),
    )
CASES |= {
    "split": lambda: (nn.Linear(7, 15), like(nn.Linear(7, 15), SplitLowRankLinear, (2, 1, 3))),
    "split, no bias": lambda: (
        nn.Linear(7, 15, bias=False),
        like(nn.Linear(7, 15, bias=False), SplitLowRankLinear, (2, 1, 3)),
    ),
    "split, two parts": lambda: (nn.Linear(4, 6), like(nn.Linear(4, 6), SplitLowRankLinear, [1, 2])),
}
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
    ranks = {LowRankLinear: 2, MatrixConv: 2, SpatialConv: 3, TuckerConv: (3, 2)}
    kind = type(low_rank)
    empty = like(dense, kind, getattr(low_rank, "ranks", ranks.get(kind)), device="meta", dtype=torch.float16)
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
