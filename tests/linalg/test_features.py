import pytest
import torch
from networks import random_matrix, relative_difference

from lrcompress.linalg import fit, nested_features

# Outputs, channels, positions: more channels than outputs × positions, fewer, one of each.
KERNELS = [(4, 6, 3), (2, 9, 2), (7, 3, 4), (5, 4, 1), (1, 5, 3), (3, 1, 2)]


def kernel(outputs, channels, positions, *, seed=0):
    return random_matrix(outputs, channels * positions, seed=seed).unflatten(1, (channels, positions))


def some_inputs(channels, positions, *, count=400, seed=7):
    """Inputs as rows ordered (channel, position), with correlations between both and with channels that say little."""
    mixed = random_matrix(count, channels * positions, seed=seed)
    mixed = mixed @ (torch.eye(channels * positions, dtype=torch.float64) + 0.3 * random_matrix(*[mixed.shape[1]] * 2))
    scales = torch.logspace(0, -2, channels, dtype=torch.float64)[:, None].expand(channels, positions)
    return mixed * scales.flatten()


def approximation(nested, rank, coefficients=None):
    """The kernel that is made from the first features: Σ_a B[o, a, p] D[a, c]."""
    fitted = fit(nested, nested.coefficients[:, :rank] if coefficients is None else coefficients)
    return torch.einsum("oap,ac->ocp", fitted, nested.features[:rank])


def features_of_inputs(inputs, nested, rank):
    """z_a at each position, as rows of the regression problem."""
    channels = nested.features.shape[1]
    by_channel = inputs.unflatten(1, (channels, -1))
    return torch.einsum("ac,ncp->nap", nested.features[:rank], by_channel).flatten(1)


@pytest.mark.parametrize("shape", KERNELS)
def test_without_inputs_the_features_are_the_singular_vectors_of_the_channels(shape):
    W = kernel(*shape)
    nested = nested_features(W)
    assert nested.triangle is None
    assert torch.allclose(nested.features @ nested.features.T, torch.eye(shape[1], dtype=torch.float64), atol=1e-12)
    sigma = torch.linalg.svdvals(W.transpose(0, 1).flatten(1))
    explained = nested.coefficients.square().sum((0, 2))
    assert torch.allclose(explained[: len(sigma)], sigma.square(), rtol=1e-8, atol=1e-10)
    assert (explained[len(sigma) :] < 1e-12).all()
    assert nested.total == pytest.approx(float(sigma.square().sum()))


@pytest.mark.parametrize("shape", KERNELS)
def test_without_inputs_the_first_features_give_the_best_approximation(shape):
    W = kernel(*shape)
    nested = nested_features(W)
    sigma = torch.linalg.svdvals(W.transpose(0, 1).flatten(1))
    for rank in range(1, shape[1] + 1):
        error = float((W - approximation(nested, rank)).norm())
        assert error == pytest.approx(float(sigma[rank:].norm()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", KERNELS)
def test_all_features_give_the_kernel_back_whatever_the_inputs(shape):
    W, X = kernel(*shape), some_inputs(*shape[1:])
    for input_gram in (None, X.T @ X):
        nested = nested_features(W, input_gram=input_gram)
        assert relative_difference(approximation(nested, shape[1]), W) < 1e-9


@pytest.mark.parametrize("shape", KERNELS)
def test_the_coefficients_of_the_first_features_are_those_of_a_linear_regression(shape):
    W, X = kernel(*shape), some_inputs(*shape[1:])
    nested, outputs = nested_features(W, input_gram=X.T @ X), X @ W.flatten(1).T
    for rank in range(1, shape[1] + 1):
        Z = features_of_inputs(X, nested, rank)
        solution = torch.linalg.lstsq(Z, outputs).solution
        assert relative_difference(fit(nested, nested.coefficients[:, :rank]).flatten(1), solution.T) < 1e-7
        # What is left over is known before anything is fitted, for every rank at once.
        left = float((outputs - Z @ solution).square().sum())
        explained = float(nested.coefficients[:, :rank].square().sum())
        assert nested.total - explained == pytest.approx(left, abs=1e-9 * nested.total)
    assert nested.total == pytest.approx(float(outputs.square().sum()))


@pytest.mark.parametrize("shape", [(4, 6, 3), (7, 3, 4)])
def test_outputs_that_are_projected_first_are_fitted_alike(shape):
    W, X = kernel(*shape), some_inputs(*shape[1:])
    nested, outputs, rank = nested_features(W, input_gram=X.T @ X), X @ W.flatten(1).T, 2
    rows = torch.linalg.qr(random_matrix(shape[0], 2, seed=3)).Q.T  # orthonormal
    coefficients = torch.einsum("ao,oip->aip", rows, nested.coefficients[:, :rank])
    Z = features_of_inputs(X, nested, rank)
    solution = torch.linalg.lstsq(Z, outputs @ rows.T).solution
    assert relative_difference(fit(nested, coefficients).flatten(1), solution.T) < 1e-8
    # Mapped back, the error of both truncations together.
    left = float((outputs - Z @ solution @ rows).square().sum())
    assert nested.total - float(coefficients.square().sum()) == pytest.approx(left, rel=1e-9)


@pytest.mark.parametrize("shape", KERNELS)
def test_the_features_are_the_best_ones_where_positions_are_alike_and_not_correlated(shape):
    channels, positions = shape[1:]
    W, X = kernel(*shape), some_inputs(channels, 1)
    C = torch.einsum("cd,pq->cpdq", X.T @ X, torch.eye(positions, dtype=torch.float64)).reshape(
        channels * positions, -1
    )
    nested = nested_features(W, input_gram=C)
    root = torch.linalg.cholesky(X.T @ X)
    whitened = torch.einsum("ocp,cd->dop", W, root).flatten(1)
    # Eckart and Young in that metric: no other features of the channels leave a smaller error.
    sigma = torch.linalg.svdvals(whitened)
    for rank in range(1, channels + 1):
        rest = nested.total - float(nested.coefficients[:, :rank].square().sum())
        assert rest == pytest.approx(float(sigma[rank:].square().sum()), abs=1e-10 * nested.total)


@pytest.mark.parametrize("shape", KERNELS)
def test_the_features_of_all_positions_together_are_not_correlated(shape):
    X = some_inputs(*shape[1:])
    features = nested_features(kernel(*shape), input_gram=X.T @ X).features
    by_position = features @ X.unflatten(1, shape[1:])  # sample, feature, position
    correlations = torch.einsum("nap,nbp->ab", by_position, by_position)
    assert torch.allclose(correlations, torch.eye(shape[1], dtype=torch.float64), atol=1e-9)


def test_inputs_without_correlations_are_no_metric():
    W = kernel(4, 6, 3)
    alone, with_inputs = nested_features(W), nested_features(W, input_gram=torch.eye(18, dtype=torch.float64))
    for rank in range(1, 7):
        assert torch.allclose(approximation(alone, rank), approximation(with_inputs, rank), atol=1e-9)


def test_channels_that_are_silent_are_left_out_first():
    W, X = kernel(3, 4, 2), random_matrix(100, 8, seed=5).unflatten(1, (4, 2))
    X[:, 1:3] *= 1e-4
    X = X.flatten(1)
    nested = nested_features(W, input_gram=X.T @ X)
    W_r = approximation(nested, 2)
    assert relative_difference(X @ W_r.flatten(1).T, X @ W.flatten(1).T) < 1e-3
    assert relative_difference(W_r, W) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_computed_in_float64(dtype):
    W, X = kernel(3, 4, 2).to(dtype), some_inputs(4, 2)
    for nested in (nested_features(W), nested_features(W, input_gram=(X.T @ X).float())):
        assert nested.features.dtype == nested.coefficients.dtype == torch.float64
        assert relative_difference(approximation(nested, 4), W) < 1e-9


@pytest.mark.parametrize("rank", [0, 1])
def test_a_second_moment_that_is_singular_but_for_rounding_does_no_harm(rank):
    """Flat images under a kernel of zero sum: the damping vanishes beside what all patches have in common."""
    kernel = random_matrix(4, 3 * 9).reshape(4, 3, 9)
    kernel = kernel - kernel.mean((1, 2), keepdim=True)
    common = torch.ones(27, 1, dtype=torch.float64)
    gram = 1e12 * (common @ common.T) * rank
    gram = gram.float().double() + 1e-9 * torch.eye(27, dtype=torch.float64)
    nested = nested_features(kernel, input_gram=gram)
    assert torch.isfinite(nested.coefficients).all()
    assert torch.isfinite(fit(nested, nested.coefficients[:, :2])).all()
