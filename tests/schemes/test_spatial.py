import pytest
import torch
from networks import CONVOLUTIONS, OTHER_AXES, SAME_CONVOLUTIONS, relative_difference
from torch import nn

from lrcompress.nn import SpatialConv
from lrcompress.schemes import SCHEMES

SPATIAL = SCHEMES["spatial"]
FITTING = [
    "3x3", "3x3, no bias", "stride and padding", "dilation", "not square, same", "same, dilated", "valid", "reflect",
    "circular, same", "replicate, valid", "SAME", "SAME, no stride", "SAME, not square", "3d", "3d, replicate",
    "more inputs than outputs",
]  # fmt: skip
ALL_CONVOLUTIONS = (
    CONVOLUTIONS | SAME_CONVOLUTIONS | OTHER_AXES | {"more inputs than outputs": lambda: nn.Conv2d(7, 2, (3, 2))}
)


def rearranged(weight):
    """(input, row) by (output, column), all columns of a kernel of three axes in one."""
    return weight.detach().flatten(3).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def filled(layer, decomposition, rank):
    low_rank = SPATIAL.build(layer, (rank,))
    decomposition.fill_(low_rank, (rank,))
    return low_rank


def test_the_form_fits_ungrouped_kernels_that_are_wide_both_ways():
    assert [name for name, make in ALL_CONVOLUTIONS.items() if SPATIAL.fits(make(), name)] == FITTING


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, (3, 1)),
        nn.Conv2d(4, 4, (1, 3)),
        nn.Conv3d(4, 4, (1, 3, 3)),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv1d(4, 4, 3),
        nn.Linear(4, 12),
    ],
)
def test_the_form_fits_no_other_layer(layer):
    assert not SPATIAL.fits(layer, "conv")


@pytest.mark.parametrize("name", FITTING)
def test_the_first_layer_convolves_along_the_first_axis_and_the_second_along_the_others(name):
    layer = ALL_CONVOLUTIONS[name]()
    low_rank = SPATIAL.build(layer, (2,))
    assert type(low_rank) is SpatialConv
    axes = len(layer.kernel_size)
    assert low_rank.reduce.kernel_size == (layer.kernel_size[0], *(1,) * (axes - 1))
    assert low_rank.expand.kernel_size == (1, *layer.kernel_size[1:])
    assert low_rank.reduce.stride == (layer.stride[0], *(1,) * (axes - 1))
    assert low_rank.expand.stride == (1, *layer.stride[1:])


@pytest.mark.parametrize("name", FITTING)
def test_the_weight_is_the_best_sum_of_products_of_columns_and_rows(name):
    layer = ALL_CONVOLUTIONS[name]().double()
    decomposition, matrix = SPATIAL.decompose(layer), rearranged(layer.weight)
    U, sigma, Vt = torch.linalg.svd(matrix, full_matrices=False)
    assert SPATIAL.largest_ranks(layer) == (len(sigma),)
    errors = decomposition.squared_errors(decomposition.ranks())
    for rank in range(1, len(sigma) + 1):
        best = U[:, :rank] @ torch.diag(sigma[:rank]) @ Vt[:rank]
        assert relative_difference(rearranged(filled(layer, decomposition, rank).weight), best) < 1e-7
        expected = float(sigma[rank:].square().sum() / sigma.square().sum())
        assert float(errors[rank - 1]) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("name", FITTING)
def test_the_spectrum_is_that_of_the_rearranged_weight(name):
    layer = ALL_CONVOLUTIONS[name]().double()
    low_rank = filled(layer, SPATIAL.decompose(layer), 3)
    expected = torch.linalg.svdvals(rearranged(low_rank.weight))[:3]
    assert torch.allclose(SPATIAL.spectrum(low_rank), expected, atol=1e-12)


def test_a_separable_kernel_has_rank_one():
    layer = nn.Conv2d(1, 1, 5, bias=False).double()
    with torch.no_grad():
        layer.weight[0, 0] = torch.outer(torch.arange(1.0, 6), torch.tensor([1.0, 2, 3, 2, 1]))
    decomposition = SPATIAL.decompose(layer)
    assert float(decomposition.squared_errors(torch.tensor([[1]]))) < 1e-14
    low_rank, image = filled(layer, decomposition, 1), torch.randn(1, 1, 9, 9, dtype=torch.float64)
    assert relative_difference(low_rank(image), layer(image)) < 1e-12


def test_everything_is_kept():
    # The features of 4·3 rows and their coefficients, for 6 outputs and 3 columns, in float64.
    assert SPATIAL.decompose(CONVOLUTIONS["3x3"]()).keep_((2,)) == 8 * (12 * 12 + 6 * 12 * 3)
