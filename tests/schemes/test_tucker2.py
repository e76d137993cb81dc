import pytest
import torch
from networks import CONVOLUTIONS, OTHER_AXES, SAME_CONVOLUTIONS, relative_difference
from torch import nn

from lrcompress.nn import TuckerConv
from lrcompress.schemes import SCHEMES

TUCKER = SCHEMES["tucker2"]
ALL_CONVOLUTIONS = CONVOLUTIONS | SAME_CONVOLUTIONS | OTHER_AXES
FITTING = [name for name in ALL_CONVOLUTIONS if name != "1x1"]


def filled(layer, decomposition, ranks):
    low_rank = TUCKER.build(layer, ranks)
    decomposition.fill_(low_rank, ranks)
    return low_rank


def projected(kernel, outputs, inputs):
    """The kernel projected onto the leading singular vectors of both of its unfoldings, and those."""
    left = torch.linalg.svd(kernel.flatten(1)).U[:, :outputs]
    right = torch.linalg.svd(kernel.transpose(0, 1).flatten(1)).U[:, :inputs]
    return torch.einsum("oa,pa,ib,jb,pj...->oi...", left, left, right, right, kernel)


def test_the_form_fits_ungrouped_kernels_wider_than_one():
    assert [name for name, make in ALL_CONVOLUTIONS.items() if TUCKER.fits(make(), name)] == FITTING


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv1d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Linear(4, 12),
    ],
)
def test_the_form_fits_no_other_layer(layer):
    assert not TUCKER.fits(layer, "conv")


@pytest.mark.parametrize("name", FITTING)
def test_the_kernel_is_projected_onto_singular_vectors_of_both_unfoldings(name):
    layer = ALL_CONVOLUTIONS[name]().double()
    kernel = layer.weight.detach()
    decomposition = TUCKER.decompose(layer)
    ranks = decomposition.ranks()
    errors = decomposition.squared_errors(ranks)
    assert len(ranks) == layer.out_channels * layer.in_channels
    for (outputs, inputs), squared in zip(ranks.tolist(), errors.tolist(), strict=True):
        expected = projected(kernel, outputs, inputs)
        assert squared == pytest.approx(relative_difference(expected, kernel) ** 2, abs=1e-13)
        low_rank = filled(layer, decomposition, (outputs, inputs))
        assert relative_difference(low_rank.weight, expected) < 1e-7


@pytest.mark.parametrize("name", FITTING)
def test_the_last_layer_is_left_out_where_it_would_not_reduce_anything(name):
    layer = ALL_CONVOLUTIONS[name]()
    two, three = (TUCKER.build(layer, (layer.out_channels - fewer, 1)) for fewer in (0, 1))
    assert type(two) is type(three) is TuckerConv
    assert [key for key, _ in two.named_children()] == ["reduce", "expand"]
    assert [key for key, _ in three.named_children()] == ["reduce", "core", "expand"]
    assert two.expand.kernel_size == three.core.kernel_size == layer.kernel_size
    assert two.expand.stride == three.core.stride == layer.stride
    for unit in (two.reduce, three.reduce, three.expand):
        assert set(unit.kernel_size) == set(unit.stride) == {1}


@pytest.mark.parametrize("ranks", [(4, 2), (6, 2), (5, 1), (1, 4)])  # of 6 outputs and 4 inputs
def test_the_spectrum_is_that_of_the_unfolding_by_outputs(ranks):
    layer = CONVOLUTIONS["3x3"]().double()
    low_rank = filled(layer, TUCKER.decompose(layer), ranks)
    expected = torch.linalg.svdvals(low_rank.weight.detach().flatten(1))[: ranks[0]]
    assert torch.allclose(TUCKER.spectrum(low_rank), expected, atol=1e-12)


def test_the_spectrum_is_no_longer_than_the_unfolding_is_wide():
    layer = nn.Conv1d(2, 9, 2).double()
    low_rank = filled(layer, TUCKER.decompose(layer), (7, 1))
    expected = torch.linalg.svdvals(low_rank.weight.detach().flatten(1))
    assert torch.allclose(TUCKER.spectrum(low_rank), expected, atol=1e-12)


@pytest.mark.parametrize(("ranks", "by_inputs"), [((4, 2), False), ((6, 2), True), ((6, 1), True)])
def test_where_all_outputs_are_kept_kappa_is_of_the_unfolding_by_inputs(ranks, by_inputs):
    layer = CONVOLUTIONS["3x3"]().double()  # of 6 outputs and 4 inputs
    low_rank = filled(layer, TUCKER.decompose(layer), ranks)
    weight = low_rank.weight.detach()
    unfolding = weight.transpose(0, 1).flatten(1) if by_inputs else weight.flatten(1)
    found = TUCKER.conditioned_spectrum(low_rank, TUCKER.spectrum(low_rank))
    expected = torch.linalg.svdvals(unfolding)[: ranks[1] if by_inputs else ranks[0]]
    assert torch.allclose(found[: len(expected)], expected, atol=1e-12)
    assert len(found) == len(expected)


def test_costs_are_those_counted_by_hand():
    layer = nn.Conv2d(5, 8, 3, padding=1)
    assert TUCKER.parameters(layer, torch.tensor([[4, 3], [8, 3]])).tolist() == [
        5 * 3 + 9 * 3 * 4 + 4 * 8,
        5 * 3 + 9 * 3 * 8,
    ]


def test_everything_is_kept():
    # Of 6 outputs, 4 inputs and 9 positions, in float64: features and coefficients, and the table with what it is from.
    expected = 8 * (4 * 4 + 6 * 4 * 9 + 6 * 4 * 9 + 6 * 6 + 7 * 5)
    assert TUCKER.decompose(CONVOLUTIONS["3x3"]()).keep_((2, 2)) == expected
