import pytest
import torch
from networks import orthonormal, random_matrix

from lrcompress.dlrt import BasisChange, carry_moments


@pytest.mark.parametrize(("old", "new"), [(3, 6), (6, 3), (4, 4)])
def test_the_first_moment_moves_as_a_gradient_does(old, new):
    # The weight does not change, so neither does G; its core is Uᵀ G V before and Ûᵀ G V̂ after.
    U_hat, V_hat = orthonormal(10, max(old, new)), orthonormal(12, max(old, new), seed=1)
    U, V = U_hat[:, :old], V_hat[:, :old]
    G = U @ random_matrix(old, old, seed=2) @ V.T
    to_U, to_V = U_hat[:, :new], V_hat[:, :new]
    change = BasisChange(to_U.T @ U, V.T @ to_V)
    first, second = carry_moments(U.T @ G @ V, random_matrix(old, old).square(), change)
    assert torch.allclose(first, to_U.T @ G @ to_V, atol=1e-12)
    assert first.shape == second.shape == (new, new)


def test_permuted_bases_permute_the_second_moment():
    second = random_matrix(5, 5).square() + 1
    left, right = (torch.eye(5, dtype=torch.float64)[order] for order in ([3, 1, 4, 0, 2], [1, 0, 2, 4, 3]))
    _, moved = carry_moments(random_matrix(5, 5), second, BasisChange(left, right))
    median = float(second.flatten().sort().values[12])
    assert torch.allclose(moved, second[[3, 1, 4, 0, 2]][:, [1, 0, 2, 4, 3]].clamp_min(median))


def test_entries_of_new_directions_start_at_the_median_of_the_old_ones():
    second = torch.tensor([[1.0, 4.0, 9.0], [16.0, 25.0, 36.0], [49.0, 64.0, 81.0]])
    change = BasisChange(torch.eye(5, 3), torch.eye(3, 5))
    _, moved = carry_moments(torch.zeros(3, 3), second, change)
    assert torch.all(moved[3:] == 25.0)
    assert torch.all(moved[:, 3:] == 25.0)
    assert torch.allclose(moved[:3, :3], second.clamp_min(25.0))


@pytest.mark.parametrize("seed", range(3))
def test_the_second_moment_stays_positive_so_that_no_step_is_infinite(seed):
    change = BasisChange(orthonormal(8, 4, seed=seed), orthonormal(8, 4, seed=seed + 9).T)
    _, moved = carry_moments(random_matrix(4, 4), random_matrix(4, 4, seed=seed).square() + 1e-8, change)
    assert (moved > 0).all()


def test_moments_of_zero_stay_zero():
    change = BasisChange(orthonormal(6, 3), orthonormal(6, 3).T)
    first, second = carry_moments(torch.zeros(3, 3).double(), torch.zeros(3, 3).double(), change)
    assert torch.count_nonzero(first) == torch.count_nonzero(second) == 0
