import pytest
import torch
from networks import ALL_LAYERS, DEPTHWISE_CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, relative_difference
from torch import nn

from lrcompress.nn import LowRankLinear, MatrixConv
from lrcompress.schemes import SCHEMES

MATRIX = SCHEMES["matrix"]


def matrices(layer, weight):
    """One matrix per group by hand: outputs by inputs and positions of the kernel."""
    if isinstance(layer, nn.Linear):
        return [weight]
    if layer.transposed:
        return [part.transpose(0, 1).flatten(1) for part in weight.chunk(layer.groups)]
    return [part.flatten(1) for part in weight.chunk(layer.groups)]


def filled(layer, decomposition, rank):
    low_rank = MATRIX.build(layer, (rank,))
    decomposition.fill_(low_rank, (rank,))
    return low_rank


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_each_group_gets_the_best_matrix_of_its_rank(make):
    layer = make().double()
    decomposition = MATRIX.decompose(layer)
    dense = matrices(layer, layer.weight.detach())
    (full,) = MATRIX.largest_ranks(layer)
    assert full == min(dense[0].shape)
    for rank in range(1, full + 1):
        low_rank = filled(layer, decomposition, rank)
        for found, W in zip(matrices(layer, low_rank.weight.detach()), dense, strict=True):
            U, sigma, Vt = torch.linalg.svd(W, full_matrices=False)
            best = U[:, :rank] @ torch.diag(sigma[:rank]) @ Vt[:rank]
            assert relative_difference(found, best) < 1e-7


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_errors_are_the_tails_of_the_singular_values_of_all_groups(make):
    layer = make().double()
    decomposition = MATRIX.decompose(layer)
    squares = sum(torch.linalg.svdvals(W).square() for W in matrices(layer, layer.weight.detach()))
    expected = [float(squares[rank:].sum() / squares.sum()) for rank in range(1, len(squares) + 1)]
    assert decomposition.squared_errors(decomposition.ranks()).tolist() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_the_spectrum_is_that_of_the_matrices_that_are_left(make):
    layer = make().double()
    rank = max(1, MATRIX.largest_ranks(layer)[0] - 1)
    low_rank = filled(layer, MATRIX.decompose(layer), rank)
    left = [torch.linalg.svdvals(W)[:rank] for W in matrices(layer, low_rank.weight.detach())]
    assert torch.allclose(MATRIX.spectrum(low_rank), torch.cat(left).sort(descending=True).values, atol=1e-12)


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_the_form_is_two_layers(make):
    layer = make()
    assert type(MATRIX.build(layer, (1,))) is (LowRankLinear if isinstance(layer, nn.Linear) else MatrixConv)


def test_the_ranks_of_a_transposed_convolution_are_those_of_the_matrix_that_makes_its_outputs():
    # 9 outputs in 3 groups, from 6 inputs in 3 groups times 9 positions.
    assert MATRIX.largest_ranks(TRANSPOSED_CONVOLUTIONS["transposed 2d, groups"]()) == (3,)
    assert MATRIX.largest_ranks(nn.ConvTranspose2d(2, 30, 2)) == (8,)


@pytest.mark.parametrize(("m", "n"), [(5, 9), (9, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_basis_of_the_shorter_side_is_kept_in_the_type_of_the_weight(m, n, dtype):
    assert MATRIX.decompose(nn.Linear(n, m).to(dtype)).keep_((3,)) == 5 * 3 * dtype.itemsize


def test_every_group_has_a_basis_of_its_own():
    assert MATRIX.decompose(nn.Conv2d(8, 12, 3, groups=4)).keep_((2,)) == 4 * (3 * 2) * 4


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_the_form_fits_every_layer_whatever_it_is_called(make):
    assert MATRIX.fits(make(), "")
    assert MATRIX.fits(make(), "blocks.0.qkv")


@pytest.mark.parametrize("make", DEPTHWISE_CONVOLUTIONS.values(), ids=DEPTHWISE_CONVOLUTIONS.keys())
def test_a_depthwise_convolution_has_no_matrix_to_truncate(make):
    assert not MATRIX.fits(make(), "conv")
