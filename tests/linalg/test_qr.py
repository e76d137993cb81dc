import pytest
import torch
from networks import orthonormal, random_matrix

from lrcompress.linalg import extend_basis

TABLE = {
    "room for all": (10, 3, 3, 6),
    "more directions than room": (10, 4, 4, 6),
    "as many as rows": (6, 4, 4, 6),
    "no room": (6, 4, 4, 4),
    "a full basis": (5, 5, 5, 5),
    "a limit below the basis": (8, 4, 2, 3),
    "no directions": (8, 3, 0, 8),
    "one row": (1, 1, 1, 1),
}


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_the_extended_basis_is_orthonormal_and_contains_the_old_one(case):
    m, r, k, max_rank = case
    basis, directions = orthonormal(m, r), random_matrix(m, k, seed=5)
    extended = extend_basis(basis, directions, max_rank)
    assert extended.shape == (m, max(r, min(r + k, m, max_rank)))
    assert torch.allclose(extended.T @ extended, torch.eye(extended.shape[1], dtype=torch.float64), atol=1e-13)
    assert torch.allclose(extended @ (extended.T @ basis), basis, atol=1e-13)
    assert torch.allclose(extended[:, :r] @ (extended[:, :r].T @ basis), basis, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_the_new_basis_contains_the_directions_at_any_scale(scale):
    basis, directions = orthonormal(12, 3).float(), (random_matrix(12, 4, seed=5) * scale).float()
    extended = extend_basis(basis, directions, 12)
    wanted, Q = directions.double(), extended.double()  # squares of 1e-30 vanish in float32
    assert (wanted - Q @ (Q.T @ wanted)).norm() < 1e-5 * wanted.norm()
    assert torch.allclose(extended.T @ extended, torch.eye(7), atol=1e-5)


def test_where_room_is_short_the_strongest_new_directions_are_taken():
    basis = torch.eye(8, dtype=torch.float64)[:, :2]
    directions = torch.zeros(8, 3, dtype=torch.float64)
    directions[0, :] = 100.0  # inside of the basis: must not count
    directions[2, 0], directions[3, 1], directions[4, 2] = 1.0, 3.0, 2.0
    extended = extend_basis(basis, directions, 4)
    projector = extended @ extended.T
    assert torch.allclose(torch.diag(projector), torch.tensor([1.0, 1, 0, 1, 1, 0, 0, 0]).double(), atol=1e-12)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_what_is_taken_of_a_surplus_depends_on_strength_and_not_on_place(order):
    basis, directions = orthonormal(9, 2), random_matrix(9, 3, seed=5)
    outside = directions - basis @ (basis.T @ directions)
    strongest = torch.linalg.svd(outside, full_matrices=False).U[:, :1]  # may lie along none of the columns
    extended = extend_basis(basis, directions[:, order], 3)
    expected = basis @ basis.T + strongest @ strongest.T
    assert torch.allclose(extended @ extended.T, expected, atol=1e-12)


def test_repeated_directions_leave_room_for_all_there_are():
    basis, new = orthonormal(9, 3), random_matrix(9, 2, seed=5)
    directions = new @ random_matrix(2, 6, seed=6)  # six columns of rank two
    extended = extend_basis(basis, directions, 5)
    assert extended.shape == (9, 5)
    assert torch.allclose(extended @ (extended.T @ new), new, atol=1e-12)
    assert torch.allclose(extended.T @ extended, torch.eye(5, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("max_rank", [4, 5, 9])
def test_the_bases_of_a_batch_are_extended_each_for_itself(max_rank):
    bases = torch.stack([orthonormal(9, 3, seed=seed) for seed in range(3)])
    scales = torch.tensor([1.0, 1e-20, 0.0], dtype=torch.float64)[:, None, None]
    directions = scales * torch.stack([random_matrix(9, 3, seed=seed + 7) for seed in range(3)])
    together = extend_basis(bases, directions, max_rank)
    for basis, part, extended in zip(bases, directions, together, strict=True):
        assert extended.shape == (9, min(6, max_rank))
        assert torch.allclose(extended.T @ extended, torch.eye(extended.shape[1], dtype=torch.float64), atol=1e-12)
        assert torch.allclose(extended @ (extended.T @ basis), basis, atol=1e-12)
        outside = part - basis @ (basis.T @ part)
        U, sigma, _ = torch.linalg.svd(outside, full_matrices=False)
        wanted = U[:, : extended.shape[1] - 3][:, sigma[: extended.shape[1] - 3] > 0]
        if float(sigma[0]) > 0:
            assert torch.allclose(extended @ (extended.T @ wanted), wanted, atol=1e-12)


@pytest.mark.parametrize("directions", ["zero", "inside"])
def test_directions_that_add_nothing_still_give_an_orthonormal_basis(directions):
    basis = orthonormal(9, 3).float()
    new = torch.zeros(9, 3) if directions == "zero" else basis @ random_matrix(3, 3).float()
    extended = extend_basis(basis, new, 6)
    assert torch.allclose(extended.T @ extended, torch.eye(6), atol=1e-5)
    assert torch.allclose(extended @ (extended.T @ basis), basis, atol=1e-5)


def test_a_basis_that_has_drifted_is_orthonormal_again():
    basis = orthonormal(20, 4).float() + 1e-3 * random_matrix(20, 4, seed=3).float()
    extended = extend_basis(basis, random_matrix(20, 4, seed=4).float(), 8)
    assert torch.allclose(extended.T @ extended, torch.eye(8), atol=1e-5)
