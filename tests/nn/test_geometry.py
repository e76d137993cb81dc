import dataclasses
import itertools

import pytest
import torch
from networks import (
    CONVOLUTIONS,
    DEPTHWISE_CONVOLUTIONS,
    GROUPED_CONVOLUTIONS,
    OTHER_AXES,
    SAME_CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    example_input,
    relative_difference,
    with_weight,
)
from timm.layers import Conv2dSame
from torch import nn

from lrcompress.nn import ConvGeometry, SameConv2d

UNGROUPED = CONVOLUTIONS | SAME_CONVOLUTIONS
EVERY_KIND = UNGROUPED | OTHER_AXES | GROUPED_CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS | DEPTHWISE_CONVOLUTIONS


@pytest.mark.parametrize("stride", [1, 2, (3, 1), (4, 3)])
@pytest.mark.parametrize("kernel", [1, 3, 4, (2, 5)])
def test_same_padding_is_that_of_timm(kernel, stride):
    for dilation, size in itertools.product([1, 2, (1, 3)], [(8, 8), (9, 11), (7, 12), (1, 2)]):
        ours = SameConv2d(2, 4, kernel, stride=stride, dilation=dilation, groups=2)
        timms = Conv2dSame(2, 4, kernel, stride=stride, dilation=dilation, groups=2)
        timms.load_state_dict(ours.state_dict())
        x = torch.randn(2, 2, *size)
        assert torch.equal(ours(x), timms(x))
        assert ours(x).shape[2:] == tuple(-(-length // step) for length, step in zip(size, ours.stride, strict=True))


def test_same_padding_with_the_larger_half_behind_is_counted_by_hand():
    conv = SameConv2d(1, 1, (1, 3), stride=(1, 2), bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, 10.0, 100.0]]]]))
    # Four columns give two outputs at 0 and 2; one column is missing, behind.
    assert conv(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])).flatten().tolist() == [321, 43]


@pytest.mark.parametrize("make", EVERY_KIND.values(), ids=EVERY_KIND.keys())
def test_the_geometry_applies_a_kernel_as_the_layer_does(make):
    conv = make()
    geometry = ConvGeometry.of(conv)
    for size in ((8, 11, 7), (9, 6, 5)):
        x = torch.randn(2, conv.in_channels, *size[: len(conv.kernel_size)])
        assert torch.allclose(geometry.apply(x, conv.weight, conv.bias), conv(x), atol=1e-6)
        # No bias is made up where none is given.
        expected = conv(x) if conv.bias is None else with_weight(conv, conv.weight, 0 * conv.bias)(x)
        assert torch.allclose(geometry.apply(x, conv.weight), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_axis_is_padded_by_its_own_width(axes, mode):
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for padding in itertools.permutations((0, 1, 2), axes):
        conv = kinds[axes - 1](2, 3, 3, padding=padding, padding_mode=mode)
        x = torch.randn(1, 2, *(5, 4, 6)[:axes])
        assert torch.allclose(ConvGeometry.of(conv).apply(x, conv.weight, conv.bias), conv(x), atol=1e-6)


def test_a_geometry_is_a_value():
    conv = CONVOLUTIONS["stride and padding"]
    assert ConvGeometry.of(conv()) == ConvGeometry.of(conv())
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConvGeometry.of(conv()).stride = (1, 1)


@pytest.mark.parametrize("make", EVERY_KIND.values(), ids=EVERY_KIND.keys())
def test_a_layer_made_from_the_geometry_of_another_computes_the_same_with_its_values(make):
    conv = make()
    made = ConvGeometry.of(conv).make(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    made.load_state_dict(conv.state_dict())
    for seed in range(2):
        x = example_input(conv, seed=seed)
        assert torch.equal(made(x), conv(x))
        assert torch.equal(made(x[..., :-1]), conv(x[..., :-1]))  # same padding depends on the size


@pytest.mark.parametrize("make", EVERY_KIND.values(), ids=EVERY_KIND.keys())
def test_the_geometry_of_a_layer_made_from_a_geometry_is_that_geometry(make):
    geometry = ConvGeometry.of(make())
    assert ConvGeometry.of(geometry.make(12, 24, bias=False)) == geometry


def test_a_layer_is_made_with_the_asked_channels_bias_type_and_device():
    made = ConvGeometry.of(OTHER_AXES["3d"]()).make(6, 4, bias=True, dtype=torch.float64, device="meta")
    assert isinstance(made, nn.Conv3d)
    assert (made.in_channels, made.out_channels) == (6, 4)
    assert made.bias.dtype == made.weight.dtype == torch.float64
    assert made.weight.is_meta
    assert ConvGeometry.of(OTHER_AXES["1d"]()).make(6, 4, bias=False).bias is None


@pytest.mark.parametrize("make", EVERY_KIND.values(), ids=EVERY_KIND.keys())
def test_the_unit_geometry_mixes_the_channels_of_each_group_at_each_position(make):
    conv = make()
    geometry = ConvGeometry.of(conv)
    unit = geometry.unit().make(conv.in_channels, 2 * conv.groups, bias=False)
    x = example_input(conv)
    groups = zip(x.chunk(conv.groups, 1), unit.weight.flatten(1).chunk(conv.groups), strict=True)
    mixed = torch.cat([torch.einsum("oi,bi...->bo...", mix, part) for part, mix in groups], dim=1)
    assert relative_difference(unit(x), mixed) < 1e-6


@pytest.mark.parametrize("make", EVERY_KIND.values(), ids=EVERY_KIND.keys())
def test_the_number_of_taps_is_that_of_the_kernel(make):
    conv = make()
    assert ConvGeometry.of(conv).kernel_size == tuple(conv.weight.shape[2:])


def test_along_some_axes_the_geometry_is_kept_and_elsewhere_it_does_nothing():
    geometry = ConvGeometry.of(nn.Conv3d(3, 5, (2, 3, 4), stride=(4, 3, 2), padding=(0, 1, 2), dilation=(3, 2, 1)))
    first, others = geometry.along(range(1)), geometry.along(range(1, 3))
    assert (first.kernel_size, first.stride, first.padding, first.dilation) == (
        (2, 1, 1), (4, 1, 1), (0, 0, 0), (3, 1, 1),
    )  # fmt: skip
    assert (others.kernel_size, others.stride, others.padding, others.dilation) == (
        (1, 3, 4), (1, 3, 2), (0, 1, 2), (1, 2, 1),
    )  # fmt: skip


SEVERAL_AXES = {name: make for name, make in (UNGROUPED | OTHER_AXES).items() if not name.startswith("1d")}


@pytest.mark.parametrize("make", SEVERAL_AXES.values(), ids=SEVERAL_AXES.keys())
@pytest.mark.parametrize("shortened", [0, 1])
def test_a_product_of_kernels_is_applied_axis_by_axis(make, shortened):
    conv = make().double()
    geometry, axes = ConvGeometry.of(conv), len(conv.kernel_size)
    parts = [geometry.along(range(axis, axis + 1)).make(1, 1, bias=False, dtype=torch.float64) for axis in range(axes)]
    kernel = torch.ones((1,) * axes, dtype=torch.float64)
    for part in parts:
        kernel = kernel * part.weight[0, 0]
    whole = geometry.make(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        whole.weight[0, 0] = kernel
    x = example_input(conv)[:, :1, shortened:]
    assert relative_difference(nn.Sequential(*parts)(x), whole(x)) < 1e-12
