import pytest
import torch
from networks import CONVOLUTIONS, LINEAR_LAYERS, relative_difference
from torch import nn

from lrcompress.nn import LowRankConv2d, LowRankLinear, dense_matrix, low_rank_like, low_rank_matrix

ALL_LAYERS = LINEAR_LAYERS | CONVOLUTIONS


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_a_layer_like_another_has_its_output_shape_and_its_bias(make):
    dense = make()
    low_rank = low_rank_like(dense, 2)
    shape = (3, dense.in_features) if isinstance(dense, nn.Linear) else (3, dense.in_channels, 9, 10)
    x = torch.randn(shape)
    assert low_rank(x).shape == dense(x).shape
    assert (low_rank.expand.bias is None) == (dense.bias is None)
    assert low_rank.reduce.bias is None


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_the_layer_applies_the_product_of_its_factors(make):
    dense = make()
    low_rank = low_rank_like(dense, 2)
    shape = (3, dense.in_features) if isinstance(dense, nn.Linear) else (3, dense.in_channels, 9, 10)
    x = torch.randn(shape)
    with torch.no_grad():
        dense.weight.copy_(low_rank_matrix(low_rank).reshape(dense.weight.shape))
        if dense.bias is not None:
            dense.bias.copy_(low_rank.expand.bias)
    assert relative_difference(low_rank(x), dense(x)) < 1e-5


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_the_layer_is_made_of_two_plain_layers(make):
    children = list(low_rank_like(make(), 1).children())
    assert len(children) == 2
    assert all(type(child) in (nn.Linear, nn.Conv2d) for child in children)


def test_the_product_is_taken_in_float64():
    layer = LowRankLinear(200, 3, 150, bias=False)
    expected = layer.expand.weight.double() @ layer.reduce.weight.double()
    assert torch.equal(low_rank_matrix(layer), expected.detach())


def test_what_parents_ask_a_layer_for_is_answered_as_by_the_dense_layer():
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
    low_rank = low_rank_like(conv, 2)
    assert isinstance(low_rank, LowRankConv2d)
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(low_rank, name) == getattr(conv, name)
    linear = low_rank_like(nn.Linear(7, 5), 2)
    assert (linear.in_features, linear.out_features) == (7, 5)


def test_the_dense_matrix_of_a_convolution_is_its_unfolding():
    conv = nn.Conv2d(3, 4, (2, 1), bias=False)
    x = torch.randn(1, 3, 5, 5)
    product = dense_matrix(conv) @ nn.functional.unfold(x, (2, 1))[0]
    assert torch.allclose(product.reshape(1, 4, 4, 5), conv(x), atol=1e-6)
    assert not dense_matrix(conv).requires_grad


def test_a_low_rank_layer_takes_the_type_of_the_dense_one():
    assert low_rank_like(nn.Linear(4, 4).double(), 2).reduce.weight.dtype == torch.float64
    assert low_rank_like(nn.Conv2d(4, 4, 1).double(), 2).expand.bias.dtype == torch.float64


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_weight_and_bias_are_those_of_the_one_layer_that_both_stand_for(make):
    dense = make()
    low_rank = low_rank_like(dense, 2)
    assert low_rank.weight.shape == dense.weight.shape
    assert (low_rank.bias is None) == (dense.bias is None)
    shape = (3, dense.in_features) if isinstance(dense, nn.Linear) else (3, dense.in_channels, 9, 10)
    x = torch.randn(shape)
    with torch.no_grad():
        dense.weight.copy_(low_rank.weight)
        if dense.bias is not None:
            dense.bias.copy_(low_rank.bias)
    assert relative_difference(low_rank(x), dense(x)) < 1e-5
    assert set(low_rank.state_dict()) <= {"reduce.weight", "expand.weight", "expand.bias"}
