import pytest
import torch
from networks import matrix_with_spectrum, orthonormal, relative_difference

from lrcompress.linalg import Factors, core_spectrum, multiply_core, orthonormal_factors, rotate_core

# (groups, rows, columns, output rank, input rank, positions) by name.
TABLE = {
    "matrix": (1, 9, 7, 4, 4, 1),
    "groups": (3, 6, 8, 2, 2, 1),
    "one number": (1, 1, 1, 1, 1, 1),
    "kernel": (1, 8, 6, 5, 3, 9),
    "kernel, all outputs": (1, 5, 6, 5, 2, 3),
    "kernel, more outputs than columns of the unfolding": (1, 9, 4, 7, 2, 2),
    "kernel, more inputs than columns of the unfolding": (1, 4, 9, 2, 7, 2),
    "groups and kernel": (2, 6, 5, 3, 4, 4),
}
every_case = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(U, S, V):
    """W[g, i, j, p] = Σ_{a,b} U[g, i, a] S[g, a, b, p] V[g, j, b], matrix by matrix."""
    positions = [[u @ s[:, :, p] @ v.T for p in range(S.shape[3])] for u, s, v in zip(U, S, V, strict=True)]
    return torch.stack([torch.stack(group, dim=2) for group in positions])


def is_orthonormal(bases, atol=1e-12):
    return all(torch.allclose(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype), atol=atol) for Q in bases)


def flattened(core, mode):
    """The unfolding of one group's core: outputs × rest, or inputs × rest."""
    return core.flatten(1) if mode == 0 else core.transpose(0, 1).flatten(1)


@every_case
def test_the_product_is_that_of_matrices_at_every_position(case):
    g, m, n, r, s, p = case
    U, S, V = normal(g, m, r), normal(g, r, s, p, seed=1), normal(g, n, s, seed=2)
    expected = by_loops(U, S, V)
    assert expected.shape == (g, m, n, p)
    assert torch.allclose(Factors(U, S, V).product(), expected, atol=1e-12)
    assert torch.allclose(multiply_core(U, S, V.mT), expected, atol=1e-12)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_orthonormal_factors_are_float64_orthonormal_and_of_the_same_product(case, dtype):
    g, m, n, r, s, p = case
    expand, core, reduce = (
        normal(g, m, r).to(dtype), normal(g, r, s, p, seed=1).to(dtype), normal(g, n, s, seed=2).to(dtype)
    )  # fmt: skip
    factors = orthonormal_factors(expand, core, reduce)
    assert (factors.U.shape, factors.S.shape, factors.V.shape) == ((g, m, r), (g, r, s, p), (g, n, s))
    assert {factor.dtype for factor in factors} == {torch.float64}
    assert is_orthonormal(factors.U)
    assert is_orthonormal(factors.V)
    assert relative_difference(by_loops(*factors), by_loops(expand.double(), core.double(), reduce.double())) < 1e-13


def test_without_a_core_the_factors_are_those_of_the_two_matrices():
    expand, reduce = normal(2, 7, 3), normal(2, 9, 3, seed=1)
    factors = orthonormal_factors(expand, None, reduce)
    assert factors.S.shape == (2, 3, 3, 1)
    assert torch.allclose(by_loops(*factors)[..., 0], expand @ reduce.mT, atol=1e-12)
    assert is_orthonormal([*factors.U, *factors.V])


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_factors_of_next_to_nothing_are_orthonormal_too(scale):
    factors = orthonormal_factors(scale * normal(1, 6, 3), None, normal(1, 5, 3) * torch.tensor([1.0, 0.0, 1.0]))
    assert is_orthonormal([*factors.U, *factors.V])
    assert float(factors.S.abs().max()) <= 100 * scale


@every_case
def test_the_rotated_core_is_the_core_in_orthonormal_directions(case):
    g, _, _, r, s, p = case
    core = normal(g, r, s, p)
    P, rotated, Q = rotate_core(core)
    assert is_orthonormal(P)
    assert is_orthonormal(Q)
    assert torch.allclose(by_loops(P.mT, core, Q.mT), rotated, atol=1e-12)
    assert relative_difference(by_loops(P, rotated, Q), core) < 1e-13  # nothing is lost


@every_case
def test_the_leading_directions_of_a_core_come_first_and_do_not_mix(case):
    """All-orthogonality: slices are orthogonal, their norms are the unfolding's singular values in descending order."""
    g, _, _, r, s, p = case
    core = normal(g, r, s, p)
    _, rotated, _ = rotate_core(core)
    for group, original in zip(rotated, core, strict=True):
        for mode in (0, 1):
            gram = flattened(group, mode) @ flattened(group, mode).T
            sigma = torch.linalg.svdvals(flattened(original, mode))[: len(gram)]
            assert torch.allclose(gram, torch.diag(sigma.square()), atol=1e-11)


def test_a_matrix_core_becomes_diagonal_with_its_singular_values():
    sigma = [[5.0, 2.0, 1e-3], [4.0, 4.0, 0.0]]
    core = torch.stack([matrix_with_spectrum(values, 3, 3, seed=i) for i, values in enumerate(sigma)]).unsqueeze(3)
    _, rotated, _ = rotate_core(core)
    assert torch.allclose(rotated[..., 0], torch.diag_embed(torch.tensor(sigma).double()), atol=1e-14)
    off = rotated[..., 0] - torch.diag_embed(rotated[..., 0].diagonal(dim1=1, dim2=2))
    assert torch.count_nonzero(off) == 0


@pytest.mark.parametrize("positions", [1, 4])
def test_a_zero_core_is_rotated_by_orthonormal_directions(positions):
    P, rotated, Q = rotate_core(torch.zeros(2, 3, 3, positions))
    assert torch.count_nonzero(rotated) == 0
    assert is_orthonormal([*P, *Q])


@pytest.mark.parametrize("positions", [1, 5])
def test_a_core_is_decomposed_in_float64_and_returned_in_its_own_type(positions):
    core = normal(1, 6, 6, positions).float()
    P, rotated, Q = rotate_core(core)
    assert P.dtype == rotated.dtype == Q.dtype == torch.float32
    exact = rotate_core(core.double())
    assert torch.equal(P, exact[0].float())
    assert torch.equal(Q, exact[2].float())


def test_the_spectrum_of_a_core_is_over_all_groups():
    core = normal(2, 3, 20)
    sigma = [torch.linalg.svdvals(group) for group in core]
    found = core_spectrum(core.float())
    assert found.dtype == torch.float64
    assert torch.allclose(found, torch.cat(sigma).sort(descending=True).values, rtol=1e-6)


def test_the_spectrum_of_a_core_is_that_of_the_weight():
    factors = Factors(orthonormal(9, 3)[None], normal(1, 3, 3, 1), orthonormal(8, 3, seed=1)[None])
    weight = by_loops(*factors)[0, :, :, 0]
    assert torch.allclose(core_spectrum(factors.S[..., 0]), torch.linalg.svdvals(weight)[:3])
