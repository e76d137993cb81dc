import math

import pytest
import torch
from networks import matrix_with_spectrum, orthonormal, random_matrix

from lrcompress.linalg import condition_number, conditioning_penalty, stable_rank

SPECTRA = [[3.0, 1.0], [5.0, 4.0, 3.0, 2.0], [1.0, 0.9, 0.9], [10.0, 1e-2], [1.0, 1e-4, 1e-4], [0.3]]


def penalty(core, *, scale_free=False):
    return conditioning_penalty(core, scale_free=scale_free)


def by_hand(sigma):
    """R² = r·Var(σ²), from the singular values alone."""
    squares = [value**2 for value in sigma]
    mean = sum(squares) / len(squares)
    return math.sqrt(sum((value - mean) ** 2 for value in squares)), mean


@pytest.mark.parametrize(
    ("sigma", "kappa"), [([4.0, 2.0], 2.0), ([3.0], 1.0), ([1.0, 0.0], math.inf), ([0.0], math.inf)]
)
def test_the_condition_number_is_the_ratio_of_the_outer_singular_values(sigma, kappa):
    assert condition_number(torch.tensor(sigma)) == kappa


@pytest.mark.parametrize(
    ("sigma", "expected"), [([2.0, 2.0, 2.0], 3.0), ([5.0, 0.0], 1.0), ([4.0, 3.0], 25 / 16), ([0.0, 0.0], 0.0)]
)
def test_the_stable_rank_is_the_squared_ratio_of_the_norms(sigma, expected):
    assert stable_rank(torch.tensor(sigma)) == pytest.approx(expected)


@pytest.mark.parametrize("sigma", SPECTRA)
def test_the_penalty_is_the_spread_of_the_squared_singular_values(sigma):
    core = matrix_with_spectrum(sigma, len(sigma), len(sigma))
    expected, alpha_sq = by_hand(sigma)
    assert float(penalty(core)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(penalty(core, scale_free=True)) == pytest.approx(expected / alpha_sq, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (2, 18), (3, 2), (18, 2)])
@pytest.mark.parametrize("sigma", [[2.0, 1.0], [3.0, 0.0]])
def test_the_penalty_of_a_rectangular_core_is_of_the_singular_values_that_it_can_have(shape, sigma):
    core = matrix_with_spectrum(sigma, *shape)
    expected, alpha_sq = by_hand(sigma)
    assert float(penalty(core)) == pytest.approx(expected)
    assert float(penalty(core, scale_free=True)) == pytest.approx(expected / alpha_sq)


@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (2, 7), (7, 2)])
def test_the_penalty_of_a_batch_is_the_sum_over_its_cores(shape, scale_free):
    cores = torch.stack([random_matrix(*shape, seed=seed) * (seed + 1) for seed in range(4)])
    terms = []
    for core in cores:
        expected, alpha_sq = by_hand(torch.linalg.svdvals(core).tolist())
        terms.append(expected / alpha_sq if scale_free else expected)
    assert float(penalty(cores, scale_free=scale_free)) == pytest.approx(sum(terms))


@pytest.mark.parametrize("scale_free", [False, True])
def test_perfect_and_zero_cores_in_a_batch_get_no_gradient_and_spoil_no_other(scale_free):
    cores = torch.stack([orthonormal(4, 4), torch.zeros(4, 4).double(), random_matrix(4, 4)]).requires_grad_()
    alone = random_matrix(4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(cores, scale_free=scale_free), cores)
    (expected,) = torch.autograd.grad(penalty(alone, scale_free=scale_free), alone)
    assert torch.count_nonzero(gradient[:2]) == 0
    assert torch.allclose(gradient[2], expected, rtol=1e-12)
    assert expected.norm() > 0.1


@pytest.mark.parametrize("shape", [(5, 5), (6, 4), (4, 6), (3, 27), (1, 1)])
def test_the_gradient_is_the_closed_formula(shape):
    S = random_matrix(*shape).requires_grad_()
    R = penalty(S)
    (gradient,) = torch.autograd.grad(R, S)
    with torch.no_grad():
        # Of a wide core the formula is that of its transpose.
        tall, size = (S if shape[0] >= shape[1] else S.T), min(shape)
        deviation = tall.T @ tall - S.square().sum() / size * torch.eye(size, dtype=torch.float64)
        formula = 2 * tall @ deviation / R.clamp_min(1e-300)
        along = float((gradient * S).sum())
    assert torch.allclose(gradient, formula if shape[0] >= shape[1] else formula.T, rtol=1e-10)
    assert along == pytest.approx(2 * float(R.detach()), rel=1e-10)


@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (2, 3, 5), (3, 4, 4)])
def test_the_gradient_agrees_with_finite_differences(shape, scale_free):
    numbers, step = torch.Generator().manual_seed(0), 1e-5
    S, direction = torch.randn(2, *shape, generator=numbers, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(penalty(S.requires_grad_(), scale_free=scale_free), S)
    with torch.no_grad():
        ahead, behind = (penalty(S + sign * step * direction, scale_free=scale_free) for sign in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-7)


@pytest.mark.parametrize("scale", [1e-37, 1e-19, 1e-10, 3e-11, 1e10, 1e37])
def test_the_scale_free_penalty_and_its_gradient_do_not_depend_on_scale_in_float32(scale):
    core = torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None]
    scaled = (core * scale).requires_grad_()
    core.requires_grad_()
    value, wanted = (penalty(one, scale_free=True) for one in (scaled, core))
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    (gradient,), (expected,) = torch.autograd.grad(value, scaled), torch.autograd.grad(wanted, core)
    torch.testing.assert_close(gradient * scale, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale_free", [False, True])
def test_rotations_do_not_change_the_penalty(scale_free):
    S, Q = random_matrix(6, 6), orthonormal(6, 6, seed=9)
    expected = float(penalty(S, scale_free=scale_free))
    assert float(penalty(Q @ S, scale_free=scale_free)) == pytest.approx(expected, rel=1e-12)
    assert float(penalty(S @ Q, scale_free=scale_free)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [0.01, 3.0, -100.0])
def test_scaling_multiplies_the_penalty_by_its_square_and_the_scale_free_one_not_at_all(factor):
    S = random_matrix(6, 6)
    assert float(penalty(factor * S)) == pytest.approx(factor**2 * float(penalty(S)))
    assert float(penalty(factor * S, scale_free=True)) == pytest.approx(float(penalty(S, scale_free=True)))


def test_the_scale_free_penalty_does_not_shrink_the_core():
    S = random_matrix(6, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(S, scale_free=True), S)
    assert gradient.norm() > 0.1
    assert abs(float((gradient * S.detach()).sum())) < 1e-12


@pytest.mark.parametrize("sigma", SPECTRA)
def test_the_penalty_bounds_the_condition_number(sigma):
    R, smallest = float(penalty(matrix_with_spectrum(sigma, len(sigma), len(sigma)))), sigma[-1]
    kappa = sigma[0] / smallest
    tight = math.sqrt(1 + math.sqrt(2) * R / smallest**2)
    assert kappa <= tight * (1 + 1e-9)
    assert math.log(tight) <= R / (math.sqrt(2) * smallest**2) + 1e-12


@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_perfect_core_has_no_penalty_and_no_gradient(size, scale, scale_free):
    # In float32 the Gram matrix of an orthogonal matrix is not the identity: that noise must not be a gradient.
    core = (scale * orthonormal(size, size)).float().requires_grad_()
    R = penalty(core, scale_free=scale_free)
    (gradient,) = torch.autograd.grad(R, core)
    assert float(R.detach()) == 0.0
    assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("scale_free", [False, True])
def test_a_zero_core_has_a_finite_gradient(scale_free):
    core = torch.zeros(4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(core, scale_free=scale_free), core)
    assert torch.isfinite(gradient).all()


def test_a_slight_imbalance_is_not_mistaken_for_noise():
    core = torch.diag(torch.tensor([1.0, 1.0, 1.0001])).requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(core), core)
    assert gradient.norm() > 0.1


def test_the_penalty_is_computed_in_float32_under_autocast_and_for_half_precision():
    core = torch.diag(torch.tensor([1.0, 1.001])).requires_grad_()  # bfloat16 cannot tell these apart
    with torch.autocast("cpu", torch.bfloat16):
        inside = penalty(core)
    (gradient,) = torch.autograd.grad(inside, core, retain_graph=True)
    assert inside.dtype == torch.float32
    assert float(inside.detach()) == pytest.approx(by_hand([1.0, 1.001])[0], rel=1e-3)
    assert torch.equal(gradient, torch.autograd.grad(penalty(core), core)[0])
    assert penalty(core.bfloat16()).dtype == torch.float32
