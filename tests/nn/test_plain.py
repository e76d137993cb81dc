import copy

import pytest
import torch
import torch.nn.functional as F
from networks import (
    ALL_LAYERS,
    CONVOLUTIONS,
    DEPTHWISE_CONVOLUTIONS,
    GROUPED_CONVOLUTIONS,
    LINEAR_LAYERS,
    OTHER_AXES,
    TRANSPOSED_CONVOLUTIONS,
    example_input,
    relative_difference,
)
from timm import layers as timm_layers
from torch import nn

from lrcompress.nn import (
    SameConv2d,
    is_depthwise,
    is_weight_layer,
    meta_twin,
    plain_layer,
    weight_from_matrices,
    weight_matrices,
)

# timm's layers by what they do, and images of odd, even and very small sizes.
STANDARDISED = {
    "StdConv2d": lambda: timm_layers.StdConv2d(4, 6, 3, bias=True),
    "StdConv2d, stride and groups": lambda: timm_layers.StdConv2d(4, 6, 3, stride=2, groups=2),
    "StdConv2dSame": lambda: timm_layers.StdConv2dSame(4, 6, 3, stride=2, bias=True, eps=1e-3),
    "StdConv2dSame, no stride": lambda: timm_layers.StdConv2dSame(4, 6, 3),
    "StdConv2dSame, even kernel": lambda: timm_layers.StdConv2dSame(4, 6, 4),
    "ScaledStdConv2d": lambda: timm_layers.ScaledStdConv2d(4, 6, 3, gamma=1.7),
    "ScaledStdConv2d, stride": lambda: timm_layers.ScaledStdConv2d(4, 6, 3, stride=2, bias=False, eps=1e-2),
    "ScaledStdConv2dSame": lambda: timm_layers.ScaledStdConv2dSame(4, 6, 3, stride=2, gamma=1.7),
    "ScaledStdConv2dSame, no stride": lambda: timm_layers.ScaledStdConv2dSame(4, 6, 5),
    "ScaledStdConv2dSame, dilated": lambda: timm_layers.ScaledStdConv2dSame(4, 6, 3, stride=3, dilation=2, groups=2),
}
SAME = {
    "Conv2dSame": lambda: timm_layers.Conv2dSame(4, 6, 3, stride=2),
    "Conv2dSame, no stride": lambda: timm_layers.Conv2dSame(4, 6, 4, bias=False),
    "Conv2dSame, dilated": lambda: timm_layers.Conv2dSame(4, 6, (3, 5), stride=(2, 3), dilation=2, groups=2),
}
SIZES = [(7, 8), (10, 9), (3, 12)]


class Renamed(nn.Conv2d):
    """Overrides nothing."""

    def described(self):
        return "a convolution"


class RenamedLinear(nn.Linear):
    pass


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Called(nn.Conv1d):
    def __call__(self, x):
        return -super().__call__(x)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):  # noqa: A002
        return super()._conv_forward(input, weight.abs(), bias)


class Halved(nn.Linear):
    """Has the parameters of a linear layer, but another weight."""

    @property
    def weight(self):
        if "weight" not in self._parameters:
            raise AttributeError("weight")
        return self._parameters["weight"] / 2


class Gained(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)
        self.gain = nn.Parameter(torch.ones(4))


class Masked(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)
        self.register_buffer("mask", torch.ones(4, 3))


class SameLike(SameConv2d):
    pass


def randomised(layer):
    """The layer with parameters none of which is at its initial value: gains of one would hide that they are used."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer.eval()


@pytest.mark.parametrize("make", (ALL_LAYERS | DEPTHWISE_CONVOLUTIONS).values())
def test_a_plain_layer_is_returned_itself(make):
    layer = make()
    assert plain_layer(layer) is layer
    assert is_weight_layer(layer)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", (STANDARDISED | SAME).values(), ids=(STANDARDISED | SAME).keys())
def test_the_plain_layer_of_a_convolution_of_timms_gives_its_output(make, size):
    layer = randomised(make())
    x = torch.randn(2, 4, *size)
    plain = plain_layer(layer)
    assert type(plain) in (nn.Conv2d, SameConv2d)
    assert not plain.training
    assert relative_difference(plain(x), layer(x)) < 1e-6


@pytest.mark.parametrize("make", [lambda: timm_layers.Linear(5, 3), lambda: timm_layers.Linear(5, 3, bias=False)])
def test_the_plain_layer_of_timms_linear_layer_gives_its_output(make):
    layer = make()
    plain = plain_layer(layer)
    x = torch.randn(2, 5)
    assert type(plain) is nn.Linear
    assert torch.equal(plain(x), layer(x))


def test_the_output_projection_of_torchs_attention_is_plain():
    layer = nn.MultiheadAttention(6, 2).out_proj
    x = torch.randn(3, 6)
    assert type(plain_layer(layer)) is nn.Linear
    assert torch.equal(plain_layer(layer)(x), layer(x))


@pytest.mark.parametrize(
    "layer",
    [
        Renamed(3, 4, 3, stride=2, padding=1, padding_mode="reflect", groups=1),
        Renamed(4, 6, (3, 5), padding="same", groups=2, bias=False),
        RenamedLinear(3, 4),
        type("Renamed1d", (nn.Conv1d,), {})(3, 4, 3, dilation=2),
        type("Renamed3d", (nn.Conv3d,), {})(3, 4, 2, stride=(1, 2, 1)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_subclass_that_changes_nothing_is_plain(layer):
    plain, x = plain_layer(layer), example_input(layer)
    assert type(plain) is type(layer).__mro__[1]
    assert torch.equal(plain(x), layer(x))


@pytest.mark.parametrize(
    "layer",
    [
        Doubled(3, 4),
        Called(3, 4, 3),
        OwnConvolution(3, 4, 3),
        Halved(3, 4),
        Gained(),
        Masked(),
        SameLike(3, 4, 3, stride=2),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_subclass_that_may_compute_something_else_has_no_plain_layer(layer):
    assert plain_layer(layer) is None
    assert is_weight_layer(layer)


@pytest.mark.parametrize(
    "module", [nn.Embedding(3, 4), nn.BatchNorm2d(3), nn.Bilinear(2, 3, 4), nn.MultiheadAttention(4, 2), nn.Identity()]
)
def test_other_modules_are_no_weight_layers(module):
    assert not is_weight_layer(module)
    assert plain_layer(module) is None


@pytest.mark.parametrize("make", [SAME["Conv2dSame"], lambda: timm_layers.Linear(3, 4), lambda: Renamed(3, 4, 3)])
def test_tensors_are_shared_with_the_module_where_its_weight_is_used_as_it_is(make):
    layer = make()
    plain = plain_layer(layer)
    assert plain.weight is layer.weight
    assert plain.bias is layer.bias


def test_the_weight_of_a_standardised_convolution_is_changed_in_the_plain_layer_only():
    layer = randomised(STANDARDISED["ScaledStdConv2d"]())
    before = copy.deepcopy(layer.state_dict())
    plain = plain_layer(layer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert plain.bias is layer.bias
    # Mean zero and standard deviation gain·scale over each output's weights.
    flat = plain.weight.double().flatten(1)
    assert flat.mean(1).abs().max() < 1e-6
    expected = (layer.gain.double().flatten() * 1.7 * 36**-0.5).abs()
    assert torch.allclose(flat.std(1, unbiased=False), expected, rtol=1e-4)


@pytest.mark.parametrize("make", [*STANDARDISED.values(), *SAME.values()])
def test_a_layer_without_values_has_a_plain_layer_without_values(make):
    plain = plain_layer(meta_twin(make()))
    assert all(parameter.is_meta for parameter in plain.parameters())
    assert plain.weight.shape == make().weight.shape


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_the_weight_of_the_matrices_of_a_weight_is_the_weight(make):
    layer = make()
    matrices = weight_matrices(layer)
    groups = getattr(layer, "groups", 1)
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert matrices.shape == (groups, outputs // groups, layer.weight.numel() // outputs)
    assert not matrices.requires_grad
    assert torch.equal(weight_from_matrices(layer, matrices), layer.weight)


def test_matrices_of_another_weight_are_those_of_a_layer_that_has_it():
    layer = TRANSPOSED_CONVOLUTIONS["transposed 2d, groups"]()
    other = TRANSPOSED_CONVOLUTIONS["transposed 2d, groups"]()
    assert torch.equal(weight_matrices(layer, other.weight), weight_matrices(other))
    assert not torch.equal(weight_matrices(layer, other.weight), weight_matrices(layer))


@pytest.mark.parametrize("make", LINEAR_LAYERS.values(), ids=LINEAR_LAYERS.keys())
def test_the_matrix_of_a_linear_layer_takes_its_inputs_to_its_outputs(make):
    layer = make()
    x = example_input(layer)
    bias = 0 if layer.bias is None else layer.bias
    assert torch.allclose(x @ weight_matrices(layer)[0].T + bias, layer(x), atol=1e-6)


@pytest.mark.parametrize("name", ["3x3", "1x1", "stride and padding", "dilation", "groups", "groups, 1x1"])
def test_each_matrix_of_a_convolution_takes_the_patches_of_its_group_to_outputs(name):
    layer = (CONVOLUTIONS | GROUPED_CONVOLUTIONS)[name]()
    x = example_input(layer)
    y = layer(x)
    groups = []
    for part, matrix in zip(x.chunk(layer.groups, dim=1), weight_matrices(layer), strict=True):
        patches = F.unfold(part, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        groups.append((matrix @ patches).unflatten(2, y.shape[2:]))
    bias = 0 if layer.bias is None else layer.bias[:, None, None]
    assert torch.allclose(torch.cat(groups, dim=1) + bias, y, atol=1e-6)


@pytest.mark.parametrize("name", ["1d", "3d", "groups, 1d", "groups, 3d"])
def test_a_column_of_a_matrix_is_the_answer_to_one_input_at_one_position_of_the_kernel(name):
    layer = (OTHER_AXES | GROUPED_CONVOLUTIONS)[name]().double()
    # An input as large as the kernel, with neither stride nor padding: the one output is the matrix times the input.
    bare = type(layer)(layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups).double()
    bare.weight, bare.bias = layer.weight, layer.bias
    x = torch.randn(1, layer.in_channels, *layer.kernel_size, dtype=torch.float64)
    by_group = weight_matrices(layer) @ x.reshape(layer.groups, -1, 1)
    assert torch.allclose(by_group.flatten() + layer.bias, bare(x).flatten())


@pytest.mark.parametrize("name", ["transposed 2d", "transposed 2d, not square", "transposed 2d, groups"])
def test_each_matrix_of_a_transposed_convolution_spreads_the_inputs_of_its_group(name):
    layer = TRANSPOSED_CONVOLUTIONS[name]()
    x = example_input(layer)
    y, taps = layer(x), layer.kernel_size[0] * layer.kernel_size[1]
    groups = []
    for part, matrix in zip(x.chunk(layer.groups, dim=1), weight_matrices(layer), strict=True):
        # output, input, tap: what each input position adds to the outputs around it, which fold sums up.
        spread = torch.einsum("oit,bip->botp", matrix.unflatten(1, (-1, taps)), part.flatten(2)).flatten(1, 2)
        groups.append(F.fold(spread, y.shape[2:], layer.kernel_size, layer.dilation, layer.padding, layer.stride))
    bias = 0 if layer.bias is None else layer.bias[:, None, None]
    assert torch.allclose(torch.cat(groups, dim=1) + bias, y, atol=1e-5)


@pytest.mark.parametrize("make", DEPTHWISE_CONVOLUTIONS.values(), ids=DEPTHWISE_CONVOLUTIONS.keys())
def test_a_convolution_that_filters_each_channel_on_its_own_is_depthwise(make):
    assert is_depthwise(make())


@pytest.mark.parametrize("layer", [*(make() for make in ALL_LAYERS.values()), nn.Conv2d(1, 4, 3)])
def test_no_other_layer_is_depthwise(layer):
    assert not is_depthwise(layer)


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: nn.Conv2d(3, 3, 3), SAME["Conv2dSame"]])
def test_an_object_with_a_forward_pass_of_its_own_is_not_plain(make):
    layer = make()
    assert plain_layer(layer) is not None
    layer.forward = lambda x: 2 * x
    assert plain_layer(layer) is None


def test_a_subclass_with_attributes_that_its_parent_may_ask_for_is_not_plain():
    class Named(nn.Linear):
        pass

    layer = Named(3, 3)
    assert plain_layer(layer) is not None
    layer.gain = 2.0
    assert plain_layer(layer) is None
