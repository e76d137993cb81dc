import pytest
import torch
from networks import SHAPES, matrix_with_spectrum, orthonormal, random_matrix, relative_difference

from lrcompress.linalg import (
    damped_output_gram,
    gram,
    principal_basis,
    singular_values,
    tail_energies,
    two_factors,
)
from lrcompress.linalg.svd import BLOCKED

# Without the vectors, and with them.
both_ways = pytest.mark.parametrize(
    "values_of", [singular_values, lambda matrix: principal_basis(matrix).energies.sqrt()], ids=["alone", "basis"]
)


def identity(size):
    return torch.eye(size, dtype=torch.float64)


def some_inputs(count, *, seed=1):
    """Inputs, one per column, of which the first half hardly matter."""
    inputs = random_matrix(count, 30, seed=seed)
    inputs[: count // 2] *= 0.01
    return inputs


@both_ways
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_torch(shape, values_of):
    matrix = random_matrix(*shape)
    assert torch.allclose(values_of(matrix), torch.linalg.svdvals(matrix), rtol=1e-9, atol=0)


@both_ways
def test_singular_values_descend_and_are_float64_for_a_float32_matrix(values_of):
    sigma = values_of(random_matrix(9, 14).float())
    assert sigma.dtype == torch.float64
    assert (sigma[:-1] >= sigma[1:]).all()


@both_ways
def test_small_singular_values_are_good_to_a_hundred_millionth_of_the_largest(values_of):
    prescribed = [1.0, 1e-3, 1e-6, 0.0]
    sigma = values_of(matrix_with_spectrum(prescribed, 6, 4))
    assert torch.allclose(sigma, torch.tensor(prescribed, dtype=torch.float64), atol=3e-8, rtol=0)


@both_ways
def test_singular_values_of_a_zero_matrix_are_zero(values_of):
    assert torch.equal(values_of(torch.zeros(3, 5)), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_a_truncation_in_the_metric_of_inputs_is_the_best_one_for_them(shape):
    weight, inputs = random_matrix(*shape), some_inputs(shape[1])
    outputs, rank = weight @ inputs, 3
    _, basis, of_outputs = principal_basis(weight, output_gram=outputs @ outputs.T)
    expand, reduce = two_factors(weight, basis[:, :rank], of_outputs=of_outputs)
    # Eckart and Young for W X: no matrix of this rank comes closer.
    sigma = torch.linalg.svdvals(outputs)
    assert float((outputs - expand @ reduce @ inputs).norm()) == pytest.approx(float(sigma[rank:].norm()), rel=1e-6)


@pytest.mark.parametrize("in_a_metric", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_reproduces_the_matrix_in_any_metric(shape, in_a_metric):
    weight = random_matrix(*shape)
    output_gram = weight @ weight.T if in_a_metric else None
    _, basis, of_outputs = principal_basis(weight, output_gram=output_gram)
    expand, reduce = two_factors(weight, basis, of_outputs=of_outputs)
    assert relative_difference(expand @ reduce, weight) < 1e-12


def test_full_rank_is_exact_where_the_matrix_is_rank_deficient():
    weight = matrix_with_spectrum([1.0, 1e-9], 8, 6)
    _, basis, of_outputs = principal_basis(weight)
    expand, reduce = two_factors(weight, basis, of_outputs=of_outputs)
    assert relative_difference(expand @ reduce, weight) < 1e-14


@pytest.mark.parametrize("shape", [*SHAPES, (BLOCKED - 1, 3), (BLOCKED, 5), (BLOCKED + 1, 2), (2 * BLOCKED + 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gram_matrix_is_the_product_with_the_transpose_in_float64(shape, dtype):
    matrix = random_matrix(*shape).to(dtype)
    product = matrix.double() @ matrix.double().T
    found = gram(matrix)
    assert found.dtype == torch.float64
    assert torch.allclose(found, product, rtol=1e-13, atol=1e-13)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_principal_basis_is_that_of_the_shorter_side(shape):
    matrix = random_matrix(*shape)
    energies, basis, of_outputs = principal_basis(matrix)
    U, sigma, Vt = torch.linalg.svd(matrix, full_matrices=False)
    assert of_outputs == (shape[0] <= shape[1])
    assert torch.allclose(energies, sigma.square(), rtol=1e-9, atol=1e-13)
    # Singular vectors are unique but for their sign.
    agreement = (basis.T @ (U if of_outputs else Vt.T)).abs()
    assert torch.allclose(agreement, identity(min(shape)), atol=1e-7)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_principal_basis_is_orthonormal_in_float64_however_small_the_singular_values_are(shape, dtype):
    energies, basis, _ = principal_basis(matrix_with_spectrum([1.0, 1e-12], *shape).to(dtype))
    assert energies.dtype == basis.dtype == torch.float64
    assert torch.allclose(basis.T @ basis, identity(5), atol=1e-13)
    assert (energies >= 0).all()
    assert (energies[:-1] >= energies[1:]).all()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_the_principal_basis_in_the_metric_of_inputs_is_that_of_the_outputs(shape):
    weight = random_matrix(*shape)
    outputs = weight @ some_inputs(shape[1])
    energies, basis, of_outputs = principal_basis(weight, output_gram=outputs @ outputs.T)
    U, sigma, _ = torch.linalg.svd(outputs, full_matrices=False)
    count = min(shape)
    assert of_outputs
    assert energies.shape == (count,)
    assert torch.allclose(energies, sigma[:count].square(), atol=1e-12 * float(sigma[0]) ** 2)
    assert basis.shape == (shape[0], count)
    leading = min(3, count)  # where the singular values lie well apart
    assert torch.allclose((basis.T @ U).abs()[:leading, :leading], identity(leading), atol=1e-6)


@pytest.mark.parametrize("of_outputs", [True, False])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_two_factors_are_a_projection_onto_the_basis(of_outputs, rank):
    weight = random_matrix(8, 5)
    basis = orthonormal(8 if of_outputs else 5, rank, seed=4)
    expand, reduce = two_factors(weight, basis, of_outputs=of_outputs)
    assert (expand.shape, reduce.shape) == ((8, rank), (rank, 5))
    projected = basis @ basis.T @ weight if of_outputs else weight @ basis @ basis.T
    assert torch.allclose(expand @ reduce, projected, atol=1e-13)
    assert torch.equal(expand if of_outputs else reduce.T, basis)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_two_factors_have_the_type_of_the_weight(dtype):
    expand, reduce = two_factors(random_matrix(4, 6).to(dtype), orthonormal(4, 2), of_outputs=True)
    assert expand.dtype == reduce.dtype == dtype


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_two_factors_of_the_principal_basis_are_the_best_approximation(shape):
    weight, rank = random_matrix(*shape), 2
    _, basis, of_outputs = principal_basis(weight)
    expand, reduce = two_factors(weight, basis[:, :rank], of_outputs=of_outputs)
    U, sigma, Vt = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(expand @ reduce, U[:, :rank] @ torch.diag(sigma[:rank]) @ Vt[:rank], atol=1e-12)


@pytest.mark.parametrize(
    ("energies", "tails"),
    [([9.0, 4.0, 1.0], [14, 5, 1, 0]), ([7.0], [7, 0]), ([0.0, 0.0], [0, 0, 0]), ([1.0, 0.0, 0.0], [1, 0, 0, 0])],
)
def test_tail_energies_are_what_each_rank_leaves_out(energies, tails):
    assert tail_energies(torch.tensor(energies)).tolist() == tails


def test_small_energies_behind_a_large_one_are_not_lost():
    # In float64, 1e16 + 1 is 1e16: sums from the first one down would lose all that follow.
    energies = torch.tensor([1e16, *[1.0] * 100], dtype=torch.float64)
    assert tail_energies(energies)[1:].tolist() == list(range(100, -1, -1))


@pytest.mark.parametrize("damping", [1e-6, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_damped_gram_matrix_is_that_of_damped_inputs_with_a_trace_just_above_one(damping, dtype):
    weight, inputs = random_matrix(5, 7), some_inputs(7)
    C = inputs @ inputs.T
    found = damped_output_gram((weight @ C @ weight.T).to(dtype), weight.to(dtype), damping=damping)
    share = damping * torch.trace(weight @ C @ weight.T) / torch.trace(weight @ weight.T)
    expected = weight @ (C + share * identity(7)) @ weight.T
    assert found.dtype == torch.float64
    assert relative_difference(found, expected / torch.trace(weight @ C @ weight.T)) < 1e-6
    assert float(found.trace()) == pytest.approx(1 + damping)


def test_a_damped_gram_matrix_without_any_signal_is_that_of_the_weight():
    weight = random_matrix(5, 7)
    found = damped_output_gram(torch.zeros(5, 5, dtype=torch.float64), weight, damping=0.5)
    assert torch.allclose(found, 0.5 * weight @ weight.T / weight.square().sum())
