"""Fewer features of a convolution's input, and the best that can be made of them.

# Note [Nested features]
A kernel W has entries W[o, c, p]: output o, channel c, position p. Channels are to be replaced by r features
z_a = Σ_c D[a, c] x_c, computed alike at all positions, from which the output is made again by coefficients B[o, a, p].
Tucker-2 is of this form with c the input channels and p the positions of the kernel; the spatial form is, with c the
pairs of an input channel and a row of the kernel, and p the columns.

The inputs have second moment C, of shape (channels × positions) twice; C = I measures the weights alone. Given D the
best B is a linear regression. With the Cholesky factor L Lᵀ = (D ⊗ I) C (D ⊗ I)ᵀ, features in descending order of
worth, the coefficients on the orthonormalised features are Y = W C (D ⊗ I)ᵀ L⁻ᵀ: what the first r features explain of
output o is Σ_{a≤r,p} Y[o, a, p]² for every r at once. A projection of the outputs onto orthonormal rows keeps this
form, so that the error of both truncations together is known exactly too.

D is the basis of the channels that is best if inputs at different positions are not correlated, which makes the
problem a singular value decomposition in the metric of Σ_p C[·p, ·p]. The errors are not approximated that way.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lrcompress.linalg.svd import gram


class NestedFeatures(NamedTuple):
    """Features of the channels in the order of their worth. See Note [Nested features].

    Attributes:
        features: D, one feature per row.
        coefficients: Y.
        triangle: L, None where it is the identity.
        total: the energy of the outputs, tr(W C Wᵀ).
    """

    features: Float[Tensor, "c c"]
    coefficients: Float[Tensor, "o c p"]
    triangle: Float[Tensor, "cp cp"] | None
    total: float

    def count_bytes(self) -> int:
        """Returns the memory it takes."""
        triangle = 0 if self.triangle is None else self.triangle.nbytes
        return self.features.nbytes + self.coefficients.nbytes + triangle


def nested_features(
    weight: Float[Tensor, "o c p"], *, input_gram: Float[Tensor, "cp cp"] | None = None
) -> NestedFeatures:
    """Returns the features of a kernel's channels, in float64.

    Args:
        weight: the kernel W.
        input_gram: C, positive definite; None is the identity.
    """
    _, channels, positions = weight.shape
    kernel = weight.double()
    stacked = kernel.transpose(0, 1).flatten(1)  # channel, output × position
    if input_gram is None:
        _, vectors = torch.linalg.eigh(gram(stacked))
        features = vectors.flip(1).T.contiguous()
        return NestedFeatures(features, features @ kernel, None, float(kernel.square().sum()))
    C = input_gram.double()
    blocks = C.view(channels, positions, channels, positions)
    marginal = torch.einsum("cpdp->cd", blocks)
    values, vectors = torch.linalg.eigh(marginal)
    root = values.clamp_min(torch.finfo(values.dtype).eps * values[-1]).sqrt()
    whitened = (vectors * root).T @ stacked
    _, leading = torch.linalg.eigh(gram(whitened))
    features = (leading.flip(1).T / root) @ vectors.T
    # (D ⊗ I) C (D ⊗ I)ᵀ and W C (D ⊗ I)ᵀ, one side after the other.
    half = torch.einsum("ac,cpdq->apdq", features, blocks).flatten(0, 1)
    moved = torch.einsum("xdq,bd->xbq", half, features).flatten(1)
    triangle = _cholesky(moved)
    outputs = kernel.flatten(1) @ half.flatten(1).T
    coefficients = torch.linalg.solve_triangular(triangle, outputs.T, upper=False).T
    total = float((kernel.flatten(1) @ C * kernel.flatten(1)).sum())
    return NestedFeatures(features, coefficients.unflatten(1, (channels, positions)), triangle, total)


def _cholesky(matrix: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """Returns L with L Lᵀ = the matrix, plus the smallest multiple of the identity that rounding makes necessary."""
    scale, identity = matrix.diagonal().mean(), torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for jitter in (0.0, *(10.0**exponent for exponent in range(-13, 1))):
        triangle, info = torch.linalg.cholesky_ex(matrix + jitter * scale * identity)
        if int(info) == 0:
            return triangle
    raise AssertionError("a second moment with the identity added is positive definite")


def fit(nested: NestedFeatures, coefficients: Float[Tensor, "o r p"]) -> Float[Tensor, "o r p"]:
    """Returns B for the first r features from their coefficients Y, or from those of projected outputs."""
    if nested.triangle is None:
        return coefficients
    count = coefficients[0].numel()
    flat = coefficients.flatten(1)
    solved = torch.linalg.solve_triangular(nested.triangle[:count, :count], flat, upper=False, left=False)
    return solved.unflatten(1, coefficients.shape[1:])
