import pytest
import torch
from networks import CONVOLUTIONS, LINEAR_LAYERS, SAME_CONVOLUTIONS, example_input, relative_difference, tiny_mlp
from torch import nn

from lrcompress.linalg import Factors
from lrcompress.nn import (
    FactoredLayer,
    LowRankLinear,
    MatrixConv,
    count_shipped_parameters,
    factored_from_dense,
    factored_layers,
)

CONVOLUTIONS = CONVOLUTIONS | SAME_CONVOLUTIONS
ALL_LAYERS = LINEAR_LAYERS | CONVOLUTIONS


def torch_factors(layer, rank):
    """The factors of the layer's weight as torch computes them."""
    U, sigma, Vt = torch.linalg.svd(layer.weight.detach().double().flatten(1), full_matrices=False)
    return Factors(U[:, :rank], torch.diag(sigma[:rank]), Vt[:rank].T)


def full_rank(layer):
    return min(layer.weight.flatten(1).shape)


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_at_full_rank_output_and_bias_are_those_of_the_dense_layer(make):
    dense = make()
    x = example_input(dense)
    factored = factored_from_dense(dense, torch_factors(dense, full_rank(dense)))
    assert relative_difference(factored(x), dense(x)) < 1e-5
    assert (factored.bias is None) == (dense.bias is None)


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_folding_changes_no_output_adds_no_bias_and_stores_two_factors_only(make):
    dense = make()
    rank = max(1, full_rank(dense) - 1)
    factored = factored_from_dense(dense, torch_factors(dense, rank))
    shipped, x = factored.fold(), example_input(dense)
    assert type(shipped) is (LowRankLinear if isinstance(dense, nn.Linear) else MatrixConv)
    assert relative_difference(shipped(x), factored(x)) < 1e-5
    m, n = dense.weight.flatten(1).shape
    bias = 0 if dense.bias is None else m
    assert sum(tensor.numel() for tensor in shipped.state_dict().values()) == rank * (m + n) + bias
    assert set(shipped.state_dict()) == {"reduce.weight", "expand.weight"} | ({"expand.bias"} if bias else set())


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_a_truncated_convolution_applies_the_truncated_kernel(make):
    dense = make()
    factors, x = torch_factors(dense, 2), example_input(dense)
    factored = factored_from_dense(dense, factors)
    with torch.no_grad():
        dense.weight.copy_((factors.U @ factors.S @ factors.V.T).reshape(dense.weight.shape))
    assert relative_difference(factored(x), dense(x)) < 1e-5


@pytest.mark.parametrize("make", [ALL_LAYERS["linear"], ALL_LAYERS["stride and padding"]])
def test_gradients_of_the_factors_are_those_of_the_chain_rule(make):
    dense = make().double()
    factored = factored_from_dense(dense, torch_factors(dense, 3))
    U, S, V = factored.factors()
    with torch.no_grad():
        dense.weight.copy_((U @ S @ V.T).reshape(dense.weight.shape))
    x = example_input(dense)
    dense(x).square().sum().backward()
    factored.ask_for_basis_gradients_(True)
    factored(x).square().sum().backward()
    gradient = dense.weight.grad.flatten(1)
    assert torch.allclose(factored.S.grad, U.T @ gradient @ V)
    assert torch.allclose(factored.U.grad, gradient @ V @ S.T)
    assert torch.allclose(factored.V.grad, gradient.T @ U @ S)
    assert torch.allclose(factored.bias.grad, dense.bias.grad)


def test_bases_need_gradients_only_while_asked_for():
    dense = nn.Linear(6, 5)
    layer = factored_from_dense(dense, torch_factors(dense, 2))
    x = torch.randn(3, 6)
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


def test_a_change_of_rank_keeps_the_parameters_and_leaves_no_old_tensor_behind():
    dense = nn.Linear(12, 9)
    layer = factored_from_dense(dense, torch_factors(dense, 6))
    before = (layer.U, layer.S, layer.V)
    layer(torch.randn(2, 12)).sum().backward()
    layer.set_factors_(Factors(*(tensor.float() for tensor in torch_factors(dense, 2))))
    assert all(old is new for old, new in zip(before, (layer.U, layer.S, layer.V), strict=True))
    assert layer.rank == 2
    assert layer.S.grad is None
    # The state dict holds tensors of the true rank only: no padding, and no rank beside them.
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {"U": (9, 2), "S": (2, 2), "V": (12, 2), "bias": (9,)}
    assert layer.U.untyped_storage().nbytes() == 9 * 2 * 4
    # Optimisers and autograd must see the new shape.
    layer(torch.randn(2, 12)).sum().backward()
    assert layer.S.grad.shape == (2, 2)


def test_the_shape_of_the_matrix_is_that_of_the_unfolded_kernel():
    conv, linear = CONVOLUTIONS["not square"](), nn.Linear(7, 4)
    assert factored_from_dense(conv, torch_factors(conv, 2)).matrix_shape == (5, 15)
    assert factored_from_dense(linear, torch_factors(linear, 2)).matrix_shape == (4, 7)


def test_folding_costs_one_rounding():
    U, S, V = torch.randn(50, 40), torch.randn(40, 40), torch.randn(60, 40)
    factored = factored_from_dense(nn.Linear(60, 50, bias=False), Factors(U, S, V))
    assert torch.equal(factored.fold().expand.weight, (U.double() @ S.double()).float())


def test_detached_factors_do_not_train_the_layer():
    dense = nn.Linear(4, 4)
    layer = factored_from_dense(dense, torch_factors(dense, 2))
    assert not any(factor.requires_grad for factor in layer.factors())


def test_the_bias_is_a_copy_not_shared_with_the_dense_layer():
    dense = nn.Linear(4, 4)
    layer = factored_from_dense(dense, torch_factors(dense, 2))
    with torch.no_grad():
        layer.bias.add_(1)
    assert not torch.equal(layer.bias, dense.bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_factored_and_shipped_layers_have_the_type_of_the_dense_layer(dtype):
    dense = nn.Conv2d(3, 6, 3).to(dtype)
    factored = factored_from_dense(dense, torch_factors(dense, 2))
    assert {value.dtype for value in factored.state_dict().values()} == {dtype}
    assert {value.dtype for value in factored.fold().state_dict().values()} == {dtype}


def test_layers_are_found_by_name_and_counted_as_they_would_be_shipped():
    model = tiny_mlp()
    assert factored_layers(model) == {}
    model[4] = factored_from_dense(model[4], torch_factors(model[4], 5))
    assert list(factored_layers(model)) == ["4"]
    assert isinstance(model[4], FactoredLayer)
    first, inner, head = 48 * 40 + 40, 5 * (40 + 24) + 24, 24 * 4 + 4
    assert count_shipped_parameters(model) == first + inner + head


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_weight_and_bias_are_those_of_the_dense_layer_before_and_after_folding(make):
    dense = make()
    factored = factored_from_dense(dense, torch_factors(dense, full_rank(dense)))
    for layer in (factored, factored.fold()):
        assert layer.weight.shape == dense.weight.shape
        assert relative_difference(layer.weight, dense.weight) < 1e-5
        assert layer.bias is None if dense.bias is None else torch.equal(layer.bias, dense.bias)
