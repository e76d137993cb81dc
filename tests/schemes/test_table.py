import pytest
import torch
from networks import (
    ALL_LAYERS,
    CONVOLUTIONS,
    DEPTHWISE_CONVOLUTIONS,
    GROUPED_CONVOLUTIONS,
    LINEAR_LAYERS,
    OTHER_AXES,
    SAME_CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
)
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.nn import LowRankLinear, MatrixConv, SpatialConv, SplitLowRankLinear, TuckerConv
from lrcompress.schemes import SCHEMES, build_layer, find_scheme, schemes_for

# What there is to choose from by layer. The kernels that are named here are one wide along some axis, or along all.
EXPECTED = (
    dict.fromkeys(LINEAR_LAYERS | GROUPED_CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS, ("matrix",))
    | dict.fromkeys(CONVOLUTIONS | SAME_CONVOLUTIONS | OTHER_AXES, ("matrix", "spatial", "tucker2"))
    | dict.fromkeys(["not square", "1d", "1d, circular", "3d, one wide"], ("matrix", "tucker2"))
    | dict.fromkeys(["1x1"], ("matrix",))
    | dict.fromkeys(DEPTHWISE_CONVOLUTIONS, ())
)
LAYERS = ALL_LAYERS | DEPTHWISE_CONVOLUTIONS


def names(schemes):
    return tuple(scheme.name for scheme in schemes)


@pytest.mark.parametrize("name", LAYERS)
def test_of_their_own_accord_layers_have_all_schemes_that_fit(name):
    layer = LAYERS[name]()
    assert names(schemes_for(layer, name)) == names(schemes_for(layer, name, "auto")) == EXPECTED[name]


@pytest.mark.parametrize("wanted", ["matrix", "spatial", "tucker2", "split"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_wanted_scheme_is_taken_where_it_fits_and_the_matrix_form_elsewhere(name, wanted):
    fitting = EXPECTED[name]
    assert names(schemes_for(LAYERS[name](), name, wanted)) == ((wanted,) if wanted in fitting else fitting[:1])


def test_fused_projections_may_be_split():
    layer = nn.Linear(4, 12)
    assert names(schemes_for(layer, "blocks.0.attn.qkv")) == ("matrix", "split")
    assert names(schemes_for(layer, "blocks.0.attn.qkv", "split")) == ("split",)
    assert names(schemes_for(layer, "blocks.0.attn.qkv", "tucker2")) == ("matrix",)
    assert names(schemes_for(layer, "blocks.0.mlp.fc1", "split")) == ("matrix",)


def test_every_scheme_is_found_by_its_name():
    assert list(SCHEMES) == ["matrix", "spatial", "tucker2", "split"]
    for name, scheme in SCHEMES.items():
        assert find_scheme(name) is scheme
        assert scheme.name == name


@pytest.mark.parametrize("name", ["", "auto", "Matrix", "cp"])
def test_a_name_that_is_none_is_told_with_those_that_are(name):
    with pytest.raises(OptionError) as refused:
        find_scheme(name)
    assert refused.value.message == f"no scheme named `{name}`"
    assert refused.value.hint == "known are matrix, spatial, tucker2, split"
    if name != "auto":
        with pytest.raises(OptionError, match=f"no scheme named `{name}`"):
            schemes_for(nn.Linear(3, 4), "fc", name)


@pytest.mark.parametrize(
    ("layer", "scheme", "ranks", "kind"),
    [
        (nn.Linear(6, 9), "matrix", [2], LowRankLinear),
        (nn.Linear(6, 9), "split", [2, 1, 3], SplitLowRankLinear),
        (nn.Conv2d(4, 6, 3, padding=1), "matrix", [2], MatrixConv),
        (nn.Conv2d(4, 6, 3, padding=1), "spatial", (2,), SpatialConv),
        (nn.Conv2d(4, 6, 3, padding=1, bias=False), "tucker2", [3, 2], TuckerConv),
        (nn.ConvTranspose1d(4, 6, 3), "matrix", [2], MatrixConv),
    ],
)
def test_a_layer_is_built_in_the_place_of_a_dense_one(layer, scheme, ranks, kind):
    built = build_layer(layer.double(), scheme, ranks)
    assert type(built) is kind
    assert built.weight.shape == layer.weight.shape
    assert built.weight.dtype == torch.float64
    assert (built.bias is None) == (layer.bias is None)


def test_a_layer_of_an_unknown_scheme_is_refused():
    with pytest.raises(OptionError, match="no scheme named `cp`"):
        build_layer(nn.Linear(3, 4), "cp", [1])
