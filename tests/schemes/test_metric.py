"""What every scheme makes of a metric: truncations that are best for the inputs, and not for the weights alone."""

import pytest
import torch
import torch.nn.functional as F
from networks import ALL_LAYERS, CONVOLUTIONS, OTHER_AXES, SAME_CONVOLUTIONS, random_matrix, relative_difference
from torch import nn

from lrcompress.schemes import SCHEMES, Metric

LAYERS = ALL_LAYERS | {
    "more inputs than outputs": lambda: nn.Conv2d(7, 2, (3, 2)),
    "blocks.0.attn.qkv": lambda: nn.Linear(7, 18),
    "attn.in_proj": lambda: nn.Linear(9, 12, bias=False),
}
CASES = {
    f"{scheme.name}, {name}": (lambda make=make: make().double(), scheme)
    for name, make in LAYERS.items()
    for scheme in SCHEMES.values()
    if scheme.fits(make(), name)
}
every_case = pytest.mark.parametrize(("make", "scheme"), CASES.values(), ids=CASES.keys())


def matrices(layer, weight):
    """group, output, input × position."""
    if isinstance(layer, nn.Linear):
        return weight.detach()[None]
    by_group = weight.detach().unflatten(0, (layer.groups, -1))
    return (by_group.transpose(1, 2) if layer.transposed else by_group).flatten(2)


def second_moment(length, channels, *, seed=0):
    """XᵀX of patches, in which some channels say more than others, and a little of everything."""
    patches = random_matrix(60, length, seed=seed) @ (torch.eye(length) + 0.2 * random_matrix(length, length, seed=1))
    scales = torch.logspace(0, -2, channels, dtype=torch.float64)[torch.randperm(channels)]
    patches = patches * scales.repeat_interleave(length // channels)
    gram = patches.T @ patches
    return gram + 1e-8 * gram.trace() / length * torch.eye(length, dtype=torch.float64)


def moments(layer):
    """(C of each group, the metric)."""
    dense = matrices(layer, layer.weight)
    groups, _, length = dense.shape
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // groups
    C = torch.stack([second_moment(length, inputs, seed=7 * group) for group in range(groups)])
    return C, Metric(dense @ C @ dense.transpose(1, 2), C[0] if groups == 1 else None)


def filled(layer, scheme, decomposition, ranks):
    low_rank = scheme.build(layer, ranks)
    decomposition.fill_(low_rank, ranks)
    return low_rank


def error(layer, weight, C):
    """tr(ΔW C ΔWᵀ)/tr(W C Wᵀ), summed over the groups."""
    dense = matrices(layer, layer.weight)
    lost = dense - matrices(layer, weight)
    return float((lost @ C * lost).sum() / (dense @ C * dense).sum())


def some_ranks(decomposition):
    ranks = decomposition.ranks()
    return [tuple(row) for row in ranks[torch.linspace(0, len(ranks) - 1, min(len(ranks), 4)).long()].tolist()]


@every_case
def test_predicted_errors_are_those_that_are_made_in_the_metric(make, scheme):
    layer = make()
    C, metric = moments(layer)
    decomposition = scheme.decompose(layer, metric)
    chosen = some_ranks(decomposition)
    predicted = decomposition.squared_errors(torch.tensor(chosen)).tolist()
    for ranks, squared in zip(chosen, predicted, strict=True):
        made = error(layer, filled(layer, scheme, decomposition, ranks).weight, C)
        assert squared == pytest.approx(made, rel=1e-6, abs=1e-12)


@every_case
def test_no_truncation_by_the_weights_alone_is_better_for_the_inputs(make, scheme):
    layer = make()
    C, metric = moments(layer)
    alone, calibrated = scheme.decompose(layer), scheme.decompose(layer, metric)
    gains = []
    for ranks in some_ranks(alone)[:-1]:
        before, after = (error(layer, filled(layer, scheme, one, ranks).weight, C) for one in (alone, calibrated))
        assert after <= before * (1 + 1e-9)
        gains.append(before / after)
    assert max(gains, default=2) > 1.05  # or the metric would not matter


@every_case
def test_at_full_rank_nothing_is_lost_in_any_metric(make, scheme):
    layer = make()
    _, metric = moments(layer)
    decomposition, full = scheme.decompose(layer, metric), scheme.largest_ranks(layer)
    assert relative_difference(filled(layer, scheme, decomposition, full).weight, layer.weight) < 1e-7
    assert float(decomposition.squared_errors(torch.tensor([full]))) <= 1e-14


@every_case
def test_errors_never_grow_with_a_rank_in_any_metric(make, scheme):
    layer = make()
    decomposition = scheme.decompose(layer, moments(layer)[1])
    ranks = decomposition.ranks()
    errors = decomposition.squared_errors(ranks)
    no_smaller = (ranks[:, None] >= ranks[None]).all(2)
    assert (errors[:, None] <= errors[None] + 1e-15)[no_smaller].all()
    assert (errors >= 0).all()
    assert (errors <= 1 + 1e-12).all()


@every_case
def test_inputs_that_are_all_alike_are_no_metric(make, scheme):
    layer = make()
    dense = matrices(layer, layer.weight)
    one = torch.eye(dense.shape[2], dtype=torch.float64)
    metric = Metric(dense @ dense.transpose(1, 2), one if len(dense) == 1 else None)
    alone, calibrated = scheme.decompose(layer), scheme.decompose(layer, metric)
    assert torch.equal(alone.ranks(), calibrated.ranks())
    chosen = some_ranks(alone)
    errors = alone.squared_errors(torch.tensor(chosen))
    assert torch.allclose(errors, calibrated.squared_errors(torch.tensor(chosen)), atol=1e-12)
    for ranks in chosen:
        first, second = (filled(layer, scheme, one, ranks).weight for one in (alone, calibrated))
        assert relative_difference(first, second) < 1e-7


@every_case
def test_what_is_kept_gives_the_same_layers_in_any_metric(make, scheme):
    layer = make()
    decomposition = scheme.decompose(layer, moments(layer)[1])
    ranks = some_ranks(decomposition)[1 if len(decomposition.ranks()) > 1 else 0]
    before = filled(layer, scheme, decomposition, ranks).weight
    assert decomposition.keep_(ranks) > 0
    assert torch.equal(filled(layer, scheme, decomposition, ranks).weight, before)


MATRICES = {name: case for name, case in CASES.items() if case[1].name == "matrix"}


@pytest.mark.parametrize(("make", "scheme"), MATRICES.values(), ids=MATRICES.keys())
def test_the_matrix_form_is_the_best_there_is_for_the_inputs(make, scheme):
    layer = make()
    C, metric = moments(layer)
    decomposition = scheme.decompose(layer, metric)
    # Eckart and Young for each W C^{1/2}.
    roots = torch.linalg.cholesky(C)
    squares = torch.linalg.svdvals(matrices(layer, layer.weight) @ roots).square().sum(0)
    expected = [float(squares[rank:].sum() / squares.sum()) for rank in range(1, len(squares) + 1)]
    assert decomposition.squared_errors(decomposition.ranks()).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
@pytest.mark.parametrize("name", ["3x3", "3x3, no bias", "stride and padding", "dilation"])
def test_predicted_errors_are_those_of_the_outputs_for_real_images(name, scheme):
    layer, scheme = CONVOLUTIONS[name]().double(), SCHEMES[scheme]
    smooth = F.interpolate(torch.randn(3, layer.in_channels, 4, 4, dtype=torch.float64), size=(12, 13), mode="bilinear")
    images = smooth + 0.1 * torch.randn_like(smooth)
    patches = F.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    X = patches.transpose(1, 2).flatten(0, 1)
    W, C = layer.weight.detach().flatten(1), X.T @ X
    decomposition = scheme.decompose(layer, Metric((W @ C @ W.T)[None], C))
    bias = 0 if layer.bias is None else layer.bias[:, None, None]
    outputs = layer(images) - bias
    for ranks in some_ranks(decomposition):
        low_rank = filled(layer, scheme, decomposition, ranks)
        bias = 0 if low_rank.bias is None else low_rank.bias[:, None, None]
        made = relative_difference(low_rank(images) - bias, outputs) ** 2
        predicted = float(decomposition.squared_errors(torch.tensor([ranks])))
        assert predicted == pytest.approx(made, rel=1e-6, abs=1e-12)


SEVERAL_AXES = {
    name: make
    for name, make in (CONVOLUTIONS | SAME_CONVOLUTIONS | OTHER_AXES).items()
    if SCHEMES["spatial"].fits(make(), name)
}


@pytest.mark.parametrize("make", SEVERAL_AXES.values(), ids=SEVERAL_AXES.keys())
def test_the_spatial_form_is_the_best_there_is_where_columns_are_not_correlated(make):
    layer = make().double()
    kernel = layer.weight.detach().flatten(3)  # output, input, row, column
    columns = kernel.shape[3]
    of_rows = second_moment(kernel.shape[1] * kernel.shape[2], kernel.shape[1])
    C = torch.einsum("ab,pq->apbq", of_rows, torch.eye(columns, dtype=torch.float64)).flatten(2).flatten(0, 1)
    W = kernel.flatten(1)
    decomposition = SCHEMES["spatial"].decompose(layer, Metric((W @ C @ W.T)[None], C))
    whitened = torch.linalg.cholesky(of_rows).T @ kernel.flatten(1, 2).permute(1, 0, 2).flatten(1)
    squares = torch.linalg.svdvals(whitened).square()
    expected = [float(squares[rank:].sum() / squares.sum()) for rank in range(1, len(squares) + 1)]
    assert decomposition.squared_errors(decomposition.ranks()).tolist() == pytest.approx(expected, abs=1e-10)


def test_split_parts_are_measured_in_the_same_metric():
    # All parts see the same inputs: one second moment, and one order of all their ranks.
    layer = nn.Linear(4, 9, bias=False).double()
    C, metric = moments(layer)
    decomposition = SCHEMES["split"].decompose(layer, metric)
    root = torch.linalg.cholesky(C[0])
    squares = torch.stack([torch.linalg.svdvals(W @ root).square() for W in layer.weight.detach().chunk(3)])
    for ranks in decomposition.ranks().tolist():
        left = sum(float(values[rank:].sum()) for values, rank in zip(squares, ranks, strict=True))
        found = float(decomposition.squared_errors(torch.tensor([ranks])))
        assert found == pytest.approx(left / float(squares.sum()), abs=1e-12)
    gains = [
        float(squares[part, before[part]])
        for before, after in zip(decomposition.ranks().tolist(), decomposition.ranks().tolist()[1:], strict=False)
        for part in range(3)
        if after[part] > before[part]
    ]
    assert gains == sorted(gains, reverse=True)
