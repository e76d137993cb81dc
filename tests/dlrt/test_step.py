import pytest
import torch
from networks import matrix_with_spectrum, orthonormal, random_matrix

from lrcompress.dlrt import augment, cut, rotate
from lrcompress.dlrt.step import possible_ranks, squared_errors
from lrcompress.linalg import Factors

# (groups, rows, columns, output rank, input rank, positions) by name.
TABLE = {
    "room to double": (1, 12, 10, 3, 3, 1),
    "rows are the limit": (1, 5, 12, 4, 4, 1),
    "columns are the limit": (1, 12, 5, 4, 4, 1),
    "full rank already": (1, 6, 6, 6, 6, 1),
    "rank one": (1, 9, 8, 1, 1, 1),
    "a single number": (1, 1, 1, 1, 1, 1),
    "groups": (4, 6, 9, 2, 2, 1),
    "groups, rows are the limit": (2, 3, 9, 2, 2, 1),
    "kernel": (1, 12, 10, 4, 3, 9),
    "kernel, all outputs": (1, 5, 10, 5, 3, 9),
    "kernel, limits of both modes": (1, 6, 5, 4, 4, 3),
    "kernel, few inputs": (1, 12, 4, 6, 1, 2),
}
every_case = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
KERNELS = {name: case for name, case in TABLE.items() if case[5] > 1}


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bases(g, m, r, *, seed=0):
    return torch.stack([orthonormal(m, r, seed=seed + 100 * group) for group in range(g)])


def factors_of(case, *, seed=0):
    g, m, n, r, s, p = case
    return Factors(bases(g, m, r, seed=seed), normal(g, r, s, p, seed=seed + 1), bases(g, n, s, seed=seed + 2))


def gradients(case, *, seed=7):
    g, m, n, r, s, _ = case
    return normal(g, m, r, seed=seed), normal(g, n, s, seed=seed + 1)


def matrix_factors(core, *, m=9, n=8):
    size = len(core)
    return Factors(orthonormal(m, size)[None], core[None, :, :, None], orthonormal(n, size, seed=4)[None])


def product(factors):
    """The weight, matrix by matrix."""
    return torch.stack(
        [
            torch.stack([U @ S[:, :, p] @ V.T for p in range(S.shape[2])], dim=2)
            for U, S, V in zip(*factors, strict=True)
        ]
    )


def is_orthonormal(stack, atol=1e-12):
    return all(torch.allclose(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype), atol=atol) for Q in stack)


def contains(stack, vectors, atol=1e-12):
    return torch.allclose(stack @ (stack.mT @ vectors), vectors, atol=atol)


# Augmentation.


@every_case
def test_augmentation_leaves_the_weight_unchanged_and_doubles_the_ranks_where_they_fit(case):
    g, m, n, r, s, p = case
    factors = factors_of(case)
    augmented, change = augment(factors, *gradients(case))
    outputs, inputs = min(2 * r, m), min(2 * s, n)
    if p == 1:  # a matrix has one rank
        outputs = inputs = min(outputs, inputs)
    shapes = (augmented.U.shape, augmented.S.shape, augmented.V.shape)
    assert shapes == ((g, m, outputs), (g, outputs, inputs, p), (g, n, inputs))
    assert torch.allclose(product(augmented), product(factors), atol=1e-12)
    assert is_orthonormal(augmented.U)
    assert is_orthonormal(augmented.V)
    assert contains(augmented.U, factors.U)
    assert contains(augmented.V, factors.V)
    assert torch.allclose(change.left, augmented.U.mT @ factors.U, atol=1e-12)
    assert torch.allclose(change.right, factors.V.mT @ augmented.V, atol=1e-12)


@pytest.mark.parametrize("name", ["room to double", "rank one", "groups", "kernel"])
def test_the_new_bases_contain_the_gradient_directions(name):
    grad_U, grad_V = gradients(TABLE[name])
    augmented, _ = augment(factors_of(TABLE[name]), grad_U, grad_V)
    assert contains(augmented.U, grad_U)
    assert contains(augmented.V, grad_V)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_where_only_some_directions_fit_the_strongest_are_taken_wherever_they_stand(order):
    case = (1, 12, 5, 4, 4, 1)  # V is the limit: one of four directions fits
    factors, (grad_U, grad_V) = factors_of(case), gradients(case)
    augmented, _ = augment(factors, grad_U[:, :, order], grad_V[:, :, order])
    U = factors.U[0]
    outside = grad_U[0] - U @ U.T @ grad_U[0]
    strongest = torch.linalg.svd(outside, full_matrices=False).U[:, :1]
    expected = U @ U.T + strongest @ strongest.T
    assert torch.allclose(augmented.U[0] @ augmented.U[0].T, expected, atol=1e-12)


def test_gradients_of_a_low_rank_give_the_directions_they_have_and_orthonormal_bases():
    case = (2, 12, 10, 4, 4, 1)
    factors, (grad_U, grad_V) = factors_of(case), gradients(case)
    mixing = normal(2, 4, 1) @ normal(2, 1, 4, seed=1)
    grad_U, grad_V = grad_U @ mixing, grad_V @ mixing
    augmented, _ = augment(factors, grad_U, grad_V)
    assert augmented.S.shape == (2, 8, 8, 1)
    assert is_orthonormal([*augmented.U, *augmented.V])
    assert contains(augmented.U, grad_U)
    assert contains(augmented.V, grad_V)
    assert torch.allclose(product(augmented), product(factors), atol=1e-12)


@every_case
@pytest.mark.parametrize("kind", ["zero", "inside the bases", "of one group only"])
def test_gradients_without_new_directions_change_nothing_that_matters(case, kind):
    factors, (grad_U, grad_V) = factors_of(case), gradients(case)
    if kind == "zero":
        grad_U, grad_V = torch.zeros_like(grad_U), torch.zeros_like(grad_V)
    elif kind == "inside the bases":
        grad_U, grad_V = 10 * factors.U, -factors.V
    else:
        grad_U[1:], grad_V[1:] = 0.0, 0.0
    augmented, _ = augment(factors, grad_U, grad_V)
    assert torch.allclose(product(augmented), product(factors), atol=1e-12)
    assert is_orthonormal([*augmented.U])
    assert is_orthonormal([*augmented.V])


@pytest.mark.parametrize("positions", [1, 2])
def test_a_gradient_step_in_the_new_bases_lowers_the_loss_where_the_old_ones_could_not(positions):
    # The loss ‖W − target‖² with a target whose row and column spaces are orthogonal to those of W.
    basis, other = torch.eye(6, dtype=torch.float64)[:, :2], torch.eye(6, dtype=torch.float64)[:, 2:4]
    core = 0.1 * torch.eye(2, dtype=torch.float64)[None, :, :, None].expand(1, 2, 2, positions)
    factors = Factors(basis[None], core, basis[None])
    target = (basis @ other.T + other @ basis.T)[None, :, :, None].expand(1, 6, 6, positions)
    gradient = 2 * (product(factors) - target)
    assert torch.allclose(torch.einsum("ia,gijp,jb->gabp", basis, gradient, basis), 2 * core)  # no way to the target
    grad_U = torch.einsum("gijp,gabp,gjb->gia", gradient, core, factors.V)
    grad_V = torch.einsum("gijp,gabp,gia->gjb", gradient, core, factors.U)
    augmented, _ = augment(factors, grad_U, grad_V)
    inside = torch.einsum("gia,gijp,gjb->gabp", augmented.U, target, augmented.V)
    assert torch.allclose(inside.norm(), target.norm())


@pytest.mark.parametrize("positions", [1, 9])
def test_in_float32_the_output_is_unchanged_to_rounding(positions):
    case = (1, 60, 40, 15, 15, positions)
    factors = Factors(*(tensor.float() for tensor in factors_of(case)))
    grad_U, grad_V = (gradient.float() for gradient in gradients(case))
    augmented, _ = augment(factors, grad_U * 1e-6, grad_V * 1e3)
    assert augmented.U.dtype == augmented.S.dtype == augmented.V.dtype == torch.float32
    assert (product(augmented) - product(factors)).norm() < 3e-6 * product(factors).norm()
    assert is_orthonormal(augmented.U, atol=3e-6)
    assert is_orthonormal(augmented.V, atol=3e-6)


# Rotation and truncation.


@every_case
def test_rotation_leaves_the_weight_unchanged_and_puts_the_leading_directions_first(case):
    factors = factors_of(case)
    rotated, change = rotate(factors)
    assert torch.allclose(product(rotated), product(factors), atol=1e-12)
    assert is_orthonormal(rotated.U)
    assert is_orthonormal(rotated.V)
    assert torch.allclose(change.left, rotated.U.mT @ factors.U, atol=1e-12)
    assert torch.allclose(change.right, factors.V.mT @ rotated.V, atol=1e-12)
    for weight, core in zip(product(factors), rotated.S, strict=True):
        for mode in (0, 1):
            sigma = torch.linalg.svdvals(weight.transpose(0, mode).flatten(1))
            norms = torch.linalg.vector_norm(core.transpose(0, mode).flatten(1), dim=1)
            assert torch.allclose(norms, sigma[: len(norms)], atol=1e-7)


def test_all_ranks_are_possible_one_for_matrices_and_pairs_for_kernels():
    assert possible_ranks(factors_of(TABLE["room to double"])).tolist() == [[1], [2], [3]]
    pairs = possible_ranks(rotate(factors_of((1, 4, 5, 2, 3, 9)))[0]).tolist()
    assert sorted(pairs) == [[a, b] for a in (1, 2) for b in (1, 2, 3)]


@every_case
def test_the_error_of_every_cut_is_that_of_the_weight(case):
    factors = factors_of(case)
    rotated, change = rotate(factors)
    ranks = possible_ranks(rotated)
    errors = squared_errors(rotated, ranks)
    assert errors.dtype == torch.float64
    weight = product(factors)
    for wanted, error in zip(ranks.tolist(), errors.tolist(), strict=True):
        short, _ = cut(rotated, change, tuple(wanted))
        assert (short.S.shape[1], short.S.shape[2]) == (wanted[0], wanted[-1])
        true = (weight - product(short)).square().sum() / weight.square().sum()
        assert error == pytest.approx(float(true), abs=1e-12)
    assert errors[-1] == 0


@pytest.mark.parametrize("name", ["room to double", "rows are the limit", "groups"])
def test_the_error_of_a_cut_matrix_is_the_tail_of_its_singular_values(name):
    rotated, _ = rotate(factors_of(TABLE[name]))
    sigma = torch.stack([torch.linalg.svdvals(W[:, :, 0]) for W in product(rotated)])
    expected = torch.stack([sigma[:, rank:].square().sum() for rank in range(1, rotated.S.shape[1] + 1)])
    found = squared_errors(rotated, possible_ranks(rotated))
    assert torch.allclose(found, expected / sigma.square().sum(), atol=1e-13)


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS.keys())
def test_a_cut_kernel_is_as_good_as_the_theory_of_higher_order_decompositions_promises(case):
    factors = factors_of(case)
    rotated, change = rotate(factors)
    weight = product(factors)[0]
    for outputs, inputs in possible_ranks(rotated).tolist():
        error = (weight - product(cut(rotated, change, (outputs, inputs))[0])[0]).square().sum()
        tails = [
            torch.linalg.svdvals(weight.transpose(0, mode).flatten(1))[rank:].square().sum()
            for mode, rank in ((0, outputs), (1, inputs))
        ]
        # At least what the worse of the modes leaves out, at most what both do: within √2 of the best.
        assert max(tails) - 1e-10 <= error <= sum(tails) + 1e-10


@pytest.mark.parametrize("positions", [1, 4])
def test_a_zero_weight_has_no_error_at_any_ranks(positions):
    factors = factors_of((2, 6, 5, 3, 3, positions))
    rotated, change = rotate(factors._replace(S=torch.zeros_like(factors.S)))
    ranks = possible_ranks(rotated)
    assert torch.count_nonzero(squared_errors(rotated, ranks)) == 0
    short, _ = cut(rotated, change, tuple(ranks[0].tolist()))
    assert torch.count_nonzero(product(short)) == 0
    assert is_orthonormal([*short.U, *short.V])


def test_small_tails_are_not_lost_to_rounding():
    rotated, _ = rotate(matrix_factors(matrix_with_spectrum([1.0, 1e-6, 1e-7], 3, 3)))
    errors = squared_errors(rotated, possible_ranks(rotated))
    assert errors.tolist() == pytest.approx([1.01e-12, 1e-14, 0.0], rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_a_cut_matrix_is_the_best_of_its_rank_and_has_a_diagonal_core(rank):
    core = matrix_with_spectrum([3.0, 2.0, 1.0, 0.5, 0.1], 5, 5)
    factors = matrix_factors(core)
    short, change = cut(*rotate(factors), (rank,))
    sigma = torch.linalg.svdvals(core)
    assert torch.allclose((product(short) - product(factors)).norm(), sigma[rank:].norm(), atol=1e-12)
    assert torch.allclose(short.S[0, :, :, 0], torch.diag(sigma[:rank]), atol=1e-12)
    assert is_orthonormal([*short.U, *short.V])
    assert torch.allclose(change.left[0] @ core @ change.right[0], short.S[0, :, :, 0], atol=1e-12)


@pytest.mark.parametrize("positions", [1, 3])
def test_a_change_of_basis_moves_the_core_as_it_says(positions):
    case = (2, 9, 8, 3, 3, positions)
    factors = factors_of(case)
    augmented, change = augment(factors, *gradients(case))
    steps = [(factors, augmented, change)]
    rotated, change = rotate(augmented)
    steps.append((augmented, rotated, change))
    for before, after, change in steps:
        moved = torch.einsum("gqr,grsp,gst->gqtp", change.left, before.S, change.right)
        assert torch.allclose(moved, after.S, atol=1e-12)
    short, change = cut(rotated, change, (2,) if positions == 1 else (2, 1))
    moved = torch.einsum("gqr,grsp,gst->gqtp", change.left, augmented.S, change.right)
    assert torch.allclose(moved, short.S, atol=1e-12)


def test_augmenting_beyond_the_largest_rank_and_cutting_back_turns_the_bases():
    # Full at the largest rank from the start: the published code never turns such bases.
    case = (1, 20, 18, 4, 4, 1)
    factors = factors_of(case)
    augmented, _ = augment(factors, *gradients(case))
    assert augmented.S.shape == (1, 8, 8, 1)
    stepped = augmented._replace(S=augmented.S + 2 * random_matrix(8, 8, seed=9)[None, :, :, None])
    back, _ = cut(*rotate(stepped), (4,))
    assert back.S.shape == (1, 4, 4, 1)
    assert not contains(factors.U, back.U, atol=1e-2)
    assert not contains(factors.V, back.V, atol=1e-2)
    assert contains(augmented.U, back.U)


@every_case
def test_augmenting_and_cutting_back_without_a_step_is_the_identity(case):
    _, _, _, r, s, p = case
    factors = factors_of(case)
    rotated, change = rotate(augment(factors, *gradients(case))[0])
    ranks = (r,) if p == 1 else (min(r, rotated.S.shape[1]), min(s, rotated.S.shape[2]))
    back, _ = cut(rotated, change, ranks)
    assert torch.allclose(product(back), product(factors), atol=1e-11)
