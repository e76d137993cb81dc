import itertools

import pytest
import torch
from networks import example_input, matrix_with_spectrum, relative_difference
from torch import nn

from lrcompress.nn import SplitLowRankLinear
from lrcompress.schemes import SCHEMES

SPLIT = SCHEMES["split"]
SPECTRA = ([9.0, 5.0, 1.0, 0.5], [8.0, 7.0, 6.0, 4.0], [3.0, 2.0, 0.1, 0.05])


def layer_with(spectra, m, n, *, bias=True):
    layer = nn.Linear(n, 3 * m, bias=bias).double()
    with torch.no_grad():
        layer.weight.copy_(torch.cat([matrix_with_spectrum(s, m, n, seed=3 * i) for i, s in enumerate(spectra)]))
    return layer


def filled(layer, decomposition, ranks):
    low_rank = SPLIT.build(layer, ranks)
    decomposition.fill_(low_rank, ranks)
    return low_rank


@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4), (4, 4)])
def test_each_step_gives_one_rank_to_the_part_that_gains_most(m, n):
    decomposition = SPLIT.decompose(layer_with(SPECTRA, m, n))
    # In the order 7, 6, 5, 4, 2, 1, 0.5, 0.1, 0.05 of what is left after the first of each.
    assert decomposition.ranks().tolist() == [
        [1, 1, 1], [1, 2, 1], [1, 3, 1], [2, 3, 1], [2, 4, 1], [2, 4, 2], [3, 4, 2], [4, 4, 2], [4, 4, 3], [4, 4, 4],
    ]  # fmt: skip
    squares = [sum(value**2 for value in spectrum) for spectrum in SPECTRA]
    left = decomposition.squared_errors(torch.tensor([[2, 3, 1]]))
    assert float(left) == pytest.approx((1 + 0.25 + 16 + 4 + 0.01 + 0.0025) / sum(squares))


def test_no_other_division_of_as_many_ranks_has_a_smaller_error():
    decomposition = SPLIT.decompose(nn.Linear(5, 12).double())
    every = torch.tensor(list(itertools.product(range(1, 5), repeat=3)))
    errors = decomposition.squared_errors(every)
    for step, error in zip(decomposition.ranks(), decomposition.squared_errors(decomposition.ranks()), strict=True):
        assert float(error) <= float(errors[every.sum(1) == step.sum()].min()) + 1e-15


@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4)])
@pytest.mark.parametrize("ranks", [(1, 1, 1), (2, 4, 1), (4, 3, 2)])
def test_each_part_is_the_best_matrix_of_its_rank(m, n, ranks):
    layer = nn.Linear(n, 3 * m).double()
    low_rank = filled(layer, SPLIT.decompose(layer), ranks)
    assert type(low_rank) is SplitLowRankLinear
    for found, W, rank in zip(low_rank.weight.chunk(3), layer.weight.detach().chunk(3), ranks, strict=True):
        U, sigma, Vt = torch.linalg.svd(W, full_matrices=False)
        assert relative_difference(found, U[:, :rank] @ torch.diag(sigma[:rank]) @ Vt[:rank]) < 1e-7


def test_the_spectrum_is_that_of_all_parts_in_one_order():
    layer = layer_with(SPECTRA, 6, 4)
    low_rank = filled(layer, SPLIT.decompose(layer), (2, 3, 1))
    expected = torch.tensor([9.0, 8, 7, 6, 5, 3], dtype=torch.float64)
    assert torch.allclose(SPLIT.spectrum(low_rank), expected, atol=1e-12)


def test_a_part_of_zeros_gets_its_second_rank_last():
    layer = layer_with(SPECTRA, 4, 4)
    with torch.no_grad():
        layer.weight[4:8] = 0
    decomposition = SPLIT.decompose(layer)
    assert decomposition.ranks()[-4:].tolist() == [[4, 1, 4], [4, 2, 4], [4, 3, 4], [4, 4, 4]]
    x = example_input(layer)
    low_rank = filled(layer, decomposition, (4, 1, 4))
    with torch.no_grad():
        for part, bias in zip(low_rank.expand, layer.bias.chunk(3), strict=True):
            part.bias.copy_(bias)
    assert relative_difference(low_rank(x), layer(x)) < 1e-12


@pytest.mark.parametrize("name", ["qkv", "blocks.3.attn.qkv", "attn.in_proj", "to_qkv", "h.0.c_attn"])
def test_the_form_fits_fused_projections_by_their_name(name):
    assert SPLIT.fits(nn.Linear(5, 9), name)
    assert not SPLIT.fits(nn.Linear(5, 10), name)  # no three parts of one width
    assert not SPLIT.fits(nn.Conv2d(5, 9, 1), name)


@pytest.mark.parametrize("name", ["fc1", "qkv.0", "attn.qkv_proj", "kv", "", "qkvs"])
def test_other_layers_are_not_split(name):
    assert not SPLIT.fits(nn.Linear(5, 9), name)


@pytest.mark.parametrize(("layer", "full"), [(nn.Linear(7, 12), 4), (nn.Linear(3, 12), 3), (nn.Linear(1, 3), 1)])
def test_full_rank_is_that_of_a_part(layer, full):
    assert SPLIT.largest_ranks(layer) == (full,) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_basis_of_each_part_is_kept_in_the_type_of_the_weight(dtype):
    layer = nn.Linear(5, 27).to(dtype)
    assert SPLIT.decompose(layer).keep_((1, 2, 4)) == 5 * (1 + 2 + 4) * dtype.itemsize
