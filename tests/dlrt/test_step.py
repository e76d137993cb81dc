import pytest
import torch
from networks import matrix_with_spectrum, orthonormal, random_matrix

from lrcompress.dlrt import augment, truncate
from lrcompress.linalg import Factors

TABLE = {
    "room to double": (12, 10, 3),
    "rows are the limit": (5, 12, 4),
    "columns are the limit": (12, 5, 4),
    "full rank already": (6, 6, 6),
    "rank one": (9, 8, 1),
    "a single number": (1, 1, 1),
}


def factors_of(m, n, r, *, seed=0):
    return Factors(orthonormal(m, r, seed=seed), random_matrix(r, r, seed=seed + 1), orthonormal(n, r, seed=seed + 2))


def product(factors):
    return factors.U @ factors.S @ factors.V.T


def is_orthonormal(basis, atol=1e-12):
    return torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=basis.dtype), atol=atol)


def contains(basis, vectors, atol=1e-12):
    return torch.allclose(basis @ (basis.T @ vectors), vectors, atol=atol)


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_augmentation_leaves_the_weight_unchanged_and_doubles_the_rank_where_it_fits(case):
    m, n, r = case
    factors = factors_of(m, n, r)
    grad_U, grad_V = random_matrix(m, r, seed=7), random_matrix(n, r, seed=8)
    augmented, change = augment(factors, grad_U, grad_V)
    rank = min(2 * r, m, n)
    assert (augmented.U.shape, augmented.S.shape, augmented.V.shape) == ((m, rank), (rank, rank), (n, rank))
    assert torch.allclose(product(augmented), product(factors), atol=1e-12)
    assert is_orthonormal(augmented.U)
    assert is_orthonormal(augmented.V)
    assert contains(augmented.U, factors.U)
    assert contains(augmented.V, factors.V)
    assert torch.allclose(change.left, augmented.U.T @ factors.U, atol=1e-12)
    assert torch.allclose(change.right, factors.V.T @ augmented.V, atol=1e-12)


@pytest.mark.parametrize(("m", "n", "r"), [(12, 10, 3), (9, 8, 1), (8, 8, 4)])
def test_the_new_bases_contain_the_gradient_directions(m, n, r):
    grad_U, grad_V = random_matrix(m, r, seed=7), random_matrix(n, r, seed=8)
    augmented, _ = augment(factors_of(m, n, r), grad_U, grad_V)
    assert contains(augmented.U, grad_U)
    assert contains(augmented.V, grad_V)


def test_a_gradient_step_in_the_new_bases_lowers_the_loss_where_the_old_ones_could_not():
    # The loss ‖W − target‖² with a target whose row and column spaces are orthogonal to those of W.
    basis, other = torch.eye(6, dtype=torch.float64)[:, :2], torch.eye(6, dtype=torch.float64)[:, 2:4]
    factors = Factors(basis, 0.1 * torch.eye(2, dtype=torch.float64), basis)
    target = basis @ other.T + other @ basis.T
    gradient = 2 * (product(factors) - target)
    assert torch.allclose(basis.T @ gradient @ basis, 0.2 * torch.eye(2, dtype=torch.float64))
    augmented, _ = augment(factors, gradient @ factors.V @ factors.S.T, gradient.T @ factors.U @ factors.S)
    inside = augmented.U.T @ target @ augmented.V
    assert torch.allclose(inside.norm(), target.norm())


def test_a_zero_gradient_changes_nothing_that_matters():
    factors = factors_of(9, 7, 2)
    augmented, _ = augment(factors, torch.zeros(9, 2).double(), torch.zeros(7, 2).double())
    assert torch.allclose(product(augmented), product(factors), atol=1e-12)
    assert is_orthonormal(augmented.U)


def test_in_float32_the_output_is_unchanged_to_rounding():
    factors = Factors(*(tensor.float() for tensor in factors_of(60, 40, 15)))
    augmented, _ = augment(factors, random_matrix(60, 15).float() * 1e-6, random_matrix(40, 15).float() * 1e3)
    assert augmented.U.dtype == torch.float32
    assert (product(augmented) - product(factors)).norm() < 3e-6 * product(factors).norm()
    assert is_orthonormal(augmented.U, atol=3e-6)


@pytest.mark.parametrize("tol", [1e-9, 0.05, 0.3, 0.8])
def test_truncation_keeps_the_smallest_rank_within_the_tolerance_and_a_diagonal_core(tol):
    core = matrix_with_spectrum([3.0, 2.0, 1.0, 0.5, 0.1], 5, 5)
    factors = Factors(orthonormal(9, 5), core, orthonormal(8, 5, seed=4))
    truncated, change = truncate(factors, tol=tol, min_rank=1, max_rank=5)
    sigma = torch.linalg.svdvals(core)
    rank = truncated.S.shape[0]
    error = (product(truncated) - product(factors)).norm()
    assert error <= tol * core.norm() + 1e-12
    assert torch.allclose(error, sigma[rank:].norm(), atol=1e-12)  # the best of its rank
    assert sigma[rank - 1 :].norm() > tol * core.norm()
    assert torch.allclose(truncated.S, torch.diag(sigma[:rank]), atol=1e-12)
    assert is_orthonormal(truncated.U)
    assert is_orthonormal(truncated.V)
    assert torch.allclose(change.left @ core @ change.right, truncated.S, atol=1e-12)


@pytest.mark.parametrize(("bounds", "rank"), [((1, 2), 2), ((4, 5), 4), ((1, 5), 3), ((5, 5), 5)])
def test_truncation_stays_within_the_bounds_of_the_rank(bounds, rank):
    factors = Factors(orthonormal(9, 5), matrix_with_spectrum([3.0, 2.0, 1.0, 0.1, 0.01], 5, 5), orthonormal(8, 5))
    truncated, _ = truncate(factors, tol=0.1, min_rank=bounds[0], max_rank=bounds[1])
    assert truncated.S.shape == (rank, rank)


def test_augmenting_beyond_the_largest_rank_and_truncating_back_turns_the_bases():
    # Full at the largest rank from the start: the published code never turns such bases.
    factors = factors_of(20, 18, 4)
    grad_U, grad_V = random_matrix(20, 4, seed=7), random_matrix(18, 4, seed=8)
    augmented, _ = augment(factors, grad_U, grad_V)
    assert augmented.S.shape == (8, 8)
    stepped = augmented._replace(S=augmented.S + 2 * random_matrix(8, 8, seed=9))
    back, _ = truncate(stepped, tol=0.01, min_rank=1, max_rank=4)
    assert back.S.shape == (4, 4)
    assert not contains(factors.U, back.U, atol=1e-2)
    assert not contains(factors.V, back.V, atol=1e-2)
    assert contains(augmented.U, back.U)


def test_augmenting_and_truncating_without_a_step_is_the_identity():
    factors = factors_of(15, 12, 3)
    augmented, _ = augment(factors, random_matrix(15, 3, seed=7), random_matrix(12, 3, seed=8))
    back, _ = truncate(augmented, tol=1e-6, min_rank=1, max_rank=100)
    assert back.S.shape == (3, 3)
    assert torch.allclose(product(back), product(factors), atol=1e-12)
