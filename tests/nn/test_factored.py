import copy

import pytest
import torch
from low_rank_layers import CASES, like
from networks import example_input, orthonormal, relative_difference, with_weight
from torch import nn
from torch.func import functional_call

from lrcompress.linalg import Factors
from lrcompress.nn import (
    ConvGeometry,
    FactoredLayer,
    FactoredLinear,
    FactoredMatrixConv,
    FactoredSpatialConv,
    FactoredTuckerConv,
    LowRankLinear,
    MatrixConv,
    SameConv2d,
    SpatialConv,
    TuckerConv,
    factored,
    factored_layers,
)

FORMS = {
    LowRankLinear: FactoredLinear,
    MatrixConv: FactoredMatrixConv,
    SpatialConv: FactoredSpatialConv,
    TuckerConv: FactoredTuckerConv,
}
# All but the split layers, which are several of these: see test_convert.py.
CASES = {name: make for name, make in CASES.items() if not name.startswith("split")}
every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
# One or two of each form.
SOME = [
    "matrix, linear", "matrix, stride and padding", "matrix, groups", "matrix, transposed 2d, groups", "matrix, 1d",
    "spatial, not square, same", "spatial, 3d", "tucker, dilation", "tucker, all outputs, 3x3", "tucker, 3d",
]  # fmt: skip
some_cases = pytest.mark.parametrize("make", [CASES[name] for name in SOME], ids=SOME)


def dense_weight_of(layer, U, S, V):
    """The weight of the dense layer, in its layout, of factors of the given form."""
    if isinstance(layer, FactoredTuckerConv):
        return torch.einsum("oa,abp,ib->oip", U[0], S[0], V[0]).reshape(len(U[0]), len(V[0]), *layer.kernel_size)
    products = [u @ s[:, :, 0] @ v.T for u, s, v in zip(U, S, V, strict=True)]
    if isinstance(layer, FactoredLinear):
        return products[0]
    if isinstance(layer, FactoredSpatialConv):  # rows: output, column of the kernel; columns: input, row of the kernel
        rows, *columns = layer.kernel_size
        kernel = products[0].reshape(layer.out_channels, -1, layer.in_channels, rows).permute(0, 2, 3, 1)
        return kernel.reshape(layer.out_channels, layer.in_channels, rows, *columns)
    kernels = [product.reshape(len(product), -1, *layer.kernel_size) for product in products]
    return torch.cat([kernel.transpose(0, 1) for kernel in kernels] if layer.transposed else kernels)


def identity(size):
    return torch.eye(size, dtype=torch.float64)


@every_case
def test_a_factored_layer_computes_what_the_low_rank_layer_does(make):
    dense, low_rank = make()
    layer, x = factored(low_rank), example_input(dense)
    assert type(layer) is FORMS[type(low_rank)]
    assert layer.ranks == low_rank.ranks
    for image in (x, x[..., 1:] if not isinstance(dense, nn.Linear) else x[0]):  # an odd and an even width
        assert layer(image).shape == low_rank(image).shape
        assert relative_difference(layer(image), low_rank(image)) < 1e-5


@every_case
def test_a_factored_layer_computes_what_a_dense_one_with_its_weight_and_bias_does(make):
    dense, low_rank = make()
    layer, x = factored(low_rank), example_input(dense)
    expected = with_weight(dense, layer.weight, layer.bias)
    assert relative_difference(layer(x), expected(x)) < 1e-5
    assert relative_difference(layer.weight, low_rank.weight) < 1e-5
    assert relative_difference(dense_weight_of(layer, *layer.factors()), low_rank.weight) < 1e-5


@every_case
def test_both_bases_are_orthonormal(make):
    layer = factored(make()[1].double())
    for basis in (*layer.U, *layer.V):
        assert torch.allclose(basis.T @ basis, identity(basis.shape[1]), atol=1e-12)


@every_case
def test_the_bias_is_added_once_and_there_is_none_where_there_was_none(make):
    dense, low_rank = make()
    layer = factored(low_rank)
    assert (layer.bias is None) == (dense.bias is None)
    assert ("bias" in layer.state_dict()) == (dense.bias is not None)
    with torch.no_grad():
        layer.S.zero_()
    y = layer(example_input(dense))
    if dense.bias is None:
        assert torch.count_nonzero(y) == 0
    else:
        axes = 0 if isinstance(dense, nn.Linear) else len(dense.kernel_size)
        assert torch.equal(y, low_rank.bias.reshape(-1, *[1] * axes).expand_as(y))
        assert torch.equal(layer.fold().bias, low_rank.bias)


@every_case
def test_folding_gives_back_a_layer_of_the_form_it_was_made_of(make):
    dense, low_rank = make()
    shipped, x = factored(low_rank).fold(), example_input(dense)
    assert type(shipped) is type(low_rank)
    assert shipped.ranks == low_rank.ranks
    shapes, expected = ({k: v.shape for k, v in one.state_dict().items()} for one in (shipped, low_rank))
    assert shapes == expected
    assert relative_difference(shipped(x), low_rank(x)) < 1e-5
    assert relative_difference(shipped.weight, low_rank.weight) < 1e-5


@every_case
def test_folding_reflects_what_training_has_done(make):
    dense, low_rank = make()
    layer, x = factored(low_rank), example_input(dense)
    with torch.no_grad():
        layer.S.add_(torch.randn_like(layer.S))
        if layer.bias is not None:
            layer.bias.add_(1)
    expected = with_weight(dense, dense_weight_of(layer, *layer.factors()), layer.bias)(x)
    assert relative_difference(layer(x), expected) < 1e-5
    assert relative_difference(layer.fold()(x), expected) < 1e-5


@every_case
def test_gradients_of_factors_and_bias_are_those_through_the_dense_layer(make):
    dense, low_rank = (layer.double() for layer in make())
    layer, x = factored(low_rank), example_input(dense)
    layer.ask_for_basis_gradients_(True)
    direction = torch.randn_like(layer(x))
    (layer(x) * direction).sum().backward()
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (layer.U, layer.S, layer.V)]
    values = {"weight": dense_weight_of(layer, *leaves)}
    if dense.bias is not None:
        values["bias"] = low_rank.bias.detach().clone().requires_grad_()
        leaves.append(values["bias"])
    (functional_call(dense, values, (x,)) * direction).sum().backward()
    found = [layer.U.grad, layer.S.grad, layer.V.grad] + ([] if layer.bias is None else [layer.bias.grad])
    for gradient, leaf in zip(found, leaves, strict=True):
        assert float(gradient.norm()) > 0
        assert torch.allclose(gradient, leaf.grad, rtol=1e-9, atol=1e-10)


@some_cases
def test_the_gradient_of_the_core_agrees_with_finite_differences(make):
    dense, low_rank = (layer.double() for layer in make())
    layer, x, step = factored(low_rank), example_input(dense), 1e-5
    layer(x).square().sum().backward()
    gradient, direction = layer.S.grad, torch.randn_like(layer.S)
    with torch.no_grad():
        layer.S.add_(step * direction)
        ahead = layer(x).square().sum()
        layer.S.sub_(2 * step * direction)
        behind = layer(x).square().sum()
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-6)


def test_bases_need_gradients_only_while_asked_for():
    layer, x = factored(CASES["matrix, linear"]()[1]), torch.randn(3, 10)
    layer(x).sum().backward()
    assert layer.U.grad is None
    assert layer.V.grad is None
    assert layer.S.grad is not None
    layer.ask_for_basis_gradients_(True)
    layer(x).sum().backward()
    assert layer.U.grad is not None
    assert layer.V.grad is not None
    layer.ask_for_basis_gradients_(False)
    assert not layer.U.requires_grad
    assert not layer.V.requires_grad


def other_ranks(layer):
    """Random factors of the same layer with one rank less in every mode, or with one more where there is one only."""
    (g, m, r), (_, n, s), p = layer.U.shape, layer.V.shape, layer.S.shape[3]
    r, s = (rank - 1 if rank > 1 else min(rank + 1, side) for rank, side in ((r, m), (s, n)))
    if p == 1:
        r = s = min(r, s)
    U, V = (torch.stack([orthonormal(a, b, seed=i) for i in range(g)]).float() for a, b in ((m, r), (n, s)))
    return Factors(U, torch.randn(g, r, s, p), V)


@every_case
def test_a_layer_works_at_whatever_ranks_it_is_given(make):
    dense, low_rank = make()
    layer, x = factored(low_rank), example_input(dense)
    factors = other_ranks(layer)
    layer.set_factors_(factors)
    assert layer.ranks == ((factors.S.shape[1],) if factors.S.shape[3] == 1 else tuple(factors.S.shape[1:3]))
    expected = with_weight(dense, dense_weight_of(layer, *factors), layer.bias)(x)
    assert relative_difference(layer(x), expected) < 1e-5
    assert layer.fold().ranks == layer.ranks
    assert relative_difference(layer.fold()(x), expected) < 1e-5
    layer(x).sum().backward()
    assert layer.S.grad.shape == factors.S.shape


def test_a_change_of_rank_keeps_the_parameters_and_leaves_no_old_tensor_behind():
    layer = factored(LowRankLinear(12, 9, 6, bias=True))
    before = (layer.U, layer.S, layer.V)
    layer(torch.randn(2, 12)).sum().backward()
    U, S, V = layer.factors()
    layer.set_factors_(Factors(U[:, :, :2], S[:, :2, :2], V[:, :, :2]))
    assert all(old is new for old, new in zip(before, (layer.U, layer.S, layer.V), strict=True))
    assert layer.ranks == (2,)
    assert layer.S.grad is None
    # The state dict holds tensors of the true rank only: no padding, and no rank beside them.
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {"U": (1, 9, 2), "S": (1, 2, 2, 1), "V": (1, 12, 2), "bias": (9,)}
    assert layer.U.untyped_storage().nbytes() == 9 * 2 * 4
    # Optimisers and autograd must see the new shape.
    layer(torch.randn(2, 12)).sum().backward()
    assert layer.S.grad.shape == (1, 2, 2, 1)


@every_case
def test_a_state_of_other_ranks_is_taken_over(make):
    dense, low_rank = make()
    other, layer, x = factored(low_rank), factored(copy.deepcopy(low_rank)), example_input(dense)
    other.set_factors_(other_ranks(other))
    layer(x).sum().backward()
    parameters = (layer.U, layer.S, layer.V)
    layer.load_state_dict(other.state_dict())
    assert all(old is new for old, new in zip(parameters, (layer.U, layer.S, layer.V), strict=True))
    assert layer.ranks == other.ranks
    assert torch.equal(layer(x), other(x))
    layer(x).sum().backward()  # no gradient of the old shape is in the way
    assert layer.S.grad.shape == other.S.shape


def test_a_state_within_a_network_is_taken_over():
    networks = [nn.Sequential(nn.ReLU(), factored(LowRankLinear(6, 5, rank, bias=False))) for rank in (2, 4)]
    networks[0].load_state_dict(networks[1].state_dict())
    assert networks[0][1].ranks == (4,)
    assert torch.equal(networks[0][1].weight, networks[1][1].weight)


@pytest.mark.parametrize(
    "other",
    [
        lambda: factored(LowRankLinear(7, 5, 2, bias=True)),
        lambda: factored(LowRankLinear(6, 4, 3, bias=True)),
        lambda: factored(LowRankLinear(6, 5, 2, bias=False)),
        lambda: nn.Linear(6, 5),
    ],
    ids=["columns", "rows", "no bias", "dense"],
)
def test_the_state_of_another_layer_is_refused(other):
    layer = factored(LowRankLinear(6, 5, 2, bias=True))
    with pytest.raises(RuntimeError, match="state_dict"):
        layer.load_state_dict(other().state_dict())


@pytest.mark.parametrize(
    ("name", "ranks", "own", "shipped"),
    [
        ("matrix, linear", (2,), 8 * 2 + 2 * 2 + 10 * 2, 2 * (8 + 10)),
        ("matrix, stride and padding", (2,), 5 * 2 + 2 * 2 + 27 * 2, 2 * (5 + 27)),
        ("matrix, groups", (2,), 4 * (3 * 2 + 2 * 2 + 18 * 2), 4 * 2 * (3 + 18)),
        ("matrix, 1d", (2,), 6 * 2 + 2 * 2 + 12 * 2, 2 * (6 + 12)),
        ("matrix, transposed 2d", (2,), 6 * 2 + 2 * 2 + 36 * 2, 2 * (6 + 36)),
        ("matrix, transposed 2d, groups", (2,), 3 * (3 * 2 + 2 * 2 + 18 * 2), 3 * 2 * (3 + 18)),
        ("spatial, not square, same", (3,), 25 * 3 + 3 * 3 + 9 * 3, 3 * (25 + 9)),  # 5·5 and 3·3
        ("spatial, 3d", (3,), 30 * 3 + 3 * 3 + 9 * 3, 3 * (30 + 9)),  # 5·2·3 and 3·3
        ("tucker, 3x3", (3, 2), 6 * 3 + 3 * 2 * 9 + 4 * 2, 6 * 3 + 3 * 2 * 9 + 4 * 2),
        ("tucker, all outputs, 3x3", (6, 2), 6 * 6 + 6 * 2 * 9 + 4 * 2, 6 * 2 * 9 + 4 * 2),
        ("tucker, 3d", (3, 2), 5 * 3 + 3 * 2 * 18 + 3 * 2, 5 * 3 + 3 * 2 * 18 + 3 * 2),
    ],
)
def test_ranks_and_parameters_are_those_counted_by_hand(name, ranks, own, shipped):
    layer = factored(CASES[name]()[1])
    assert layer.ranks == ranks
    assert layer.own_parameters() == own
    assert layer.shipped_parameters() == shipped
    assert (
        sum(parameter.numel() for key, parameter in layer.fold().named_parameters() if key != "expand.bias") == shipped
    )


def test_folding_costs_one_rounding():
    layer = factored(LowRankLinear(60, 50, 40, bias=False))
    layer.set_factors_(Factors(torch.randn(1, 50, 40), torch.randn(1, 40, 40, 1), layer.V.detach()))
    expected = layer.U[0].double() @ layer.S[0, :, :, 0].double()
    assert torch.equal(layer.fold().expand.weight, expected.float())
    assert torch.equal(layer.fold().reduce.weight, layer.V[0].T)


@some_cases
def test_nothing_is_shared_with_the_low_rank_layer_nor_with_what_is_folded(make):
    _, low_rank = make()
    before = copy.deepcopy(low_rank.state_dict())
    layer = factored(low_rank)
    shipped = layer.fold()
    shipped_before = copy.deepcopy(shipped.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in low_rank.state_dict().items())
    assert all(torch.equal(value, shipped_before[name]) for name, value in shipped.state_dict().items())


def test_detached_factors_do_not_train_the_layer():
    layer = factored(LowRankLinear(4, 4, 2, bias=True))
    assert not any(factor.requires_grad for factor in layer.factors())


@some_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_factored_and_shipped_layers_have_the_type_of_the_low_rank_layer(make, dtype):
    layer = factored(make()[1].to(dtype))
    assert {value.dtype for value in layer.state_dict().values()} == {dtype}
    assert {value.dtype for value in layer.fold().state_dict().values()} == {dtype}
    assert layer.weight.dtype == dtype


@every_case
def test_the_plain_layer_is_the_dense_one_without_its_values(make):
    dense, low_rank = make()
    plain = factored(low_rank).plain()
    assert all(parameter.is_meta for parameter in plain.parameters())
    assert plain.weight.shape == dense.weight.shape
    assert (plain.bias is None) == (dense.bias is None)
    if isinstance(dense, nn.Linear):
        assert isinstance(plain, nn.Linear)
    else:
        assert ConvGeometry.of(plain) == ConvGeometry.of(dense)
        assert isinstance(plain, type(dense) if not isinstance(dense, SameConv2d) else nn.Conv2d)


def test_layers_are_found_by_name():
    model = nn.Sequential(nn.Linear(4, 3), nn.ModuleDict({"inner": factored(LowRankLinear(3, 3, 1, bias=False))}))
    assert list(factored_layers(model)) == ["1.inner"]
    assert isinstance(factored_layers(model)["1.inner"], FactoredLayer)
    assert factored_layers(nn.Sequential(nn.Linear(2, 2), LowRankLinear(2, 2, 1, bias=True))) == {}


def test_the_layers_of_several_ranks_are_equal_where_the_ranks_are_full():
    dense = nn.Conv2d(3, 6, (3, 2), padding=1).double()
    low_rank = like(dense, TuckerConv, (6, 3))
    with torch.no_grad():
        low_rank.reduce.weight.copy_(identity(3)[..., None, None])
        low_rank.expand.weight.copy_(dense.weight)
        low_rank.expand.bias.copy_(dense.bias)
    x = example_input(dense)
    assert relative_difference(factored(low_rank)(x), dense(x)) < 1e-13
