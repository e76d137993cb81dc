"""A weight in two bases with a core between them: what Dynamical Low-Rank Training moves."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Factors(NamedTuple):
    """W[g, i, j, p] = Σ_{a,b} U[g, i, a] S[g, a, b, p] V[g, j, b], with orthonormal columns in every U[g] and V[g].

    A matrix has one group and one position: W = U S Vᵀ. A grouped layer has a matrix per group, all of the same rank.
    A Tucker-2 factorisation of a convolution has the positions of the kernel in its core, and two ranks.
    """

    U: Float[Tensor, "g m r"]
    S: Float[Tensor, "g r s p"]
    V: Float[Tensor, "g n s"]

    def product(self) -> Float[Tensor, "g m n p"]:
        """Returns W."""
        return multiply_core(self.U, self.S, self.V.mT)


def multiply_core(
    left: Float[Tensor, "g x r"], core: Float[Tensor, "g r s p"], right: Float[Tensor, "g s y"]
) -> Float[Tensor, "g x y p"]:
    """Returns left · core · right, at every position of the kernel."""
    if core.shape[3] == 1:
        return (left @ core[..., 0] @ right).unsqueeze(3)
    return torch.einsum("gxa,gabp,gby->gxyp", left, core, right)


def orthonormal_factors(
    expand: Float[Tensor, "g m r"], core: Float[Tensor, "g r s p"] | None, reduce: Float[Tensor, "g n s"]
) -> Factors:
    """Returns the factors of a product of arbitrary matrices, in float64.

    Args:
        expand: the matrix on the side of the outputs.
        core: what lies between; None is the identity.
        reduce: the transposed matrix on the side of the inputs.
    """
    U, left = torch.linalg.qr(expand.double())
    V, right = torch.linalg.qr(reduce.double())
    if core is None:
        return Factors(U, (left @ right.mT).unsqueeze(3), V)
    return Factors(U, multiply_core(left, core.double(), right.mT), V)


def rotate_core(
    core: Float[Tensor, "g r s p"],
) -> tuple[Float[Tensor, "g r a"], Float[Tensor, "g a b p"], Float[Tensor, "g s b"]]:
    """Returns (P, Pᵀ S Q, Q): the core in the singular vectors of both of its unfoldings, the leading ones first.

    Of a matrix the rotated core is diagonal and holds the singular values; otherwise it is the higher-order singular
    value decomposition, whose leading blocks are near-best approximations. Decomposes in float64: the core is small,
    and the ranks must not depend on rounding. Result in the core's type.

    Source: De Lathauwer, De Moor, Vandewalle 2000, A multilinear singular value decomposition.
    """
    exact = core.double()
    if core.shape[3] == 1:
        P, sigma, Qt = torch.linalg.svd(exact[..., 0], full_matrices=False)
        rotated, Q = torch.diag_embed(sigma).unsqueeze(3), Qt.mT
    else:
        P = _leading_vectors(exact.flatten(2))
        Q = _leading_vectors(exact.transpose(1, 2).flatten(2))
        rotated = multiply_core(P.mT, exact, Q)
    return P.to(core.dtype), rotated.to(core.dtype), Q.to(core.dtype)


def _leading_vectors(unfolding: Float[Tensor, "g r k"]) -> Float[Tensor, "g r a"]:
    vectors = torch.linalg.eigh(unfolding @ unfolding.mT).eigenvectors.flip(2)
    return vectors[:, :, : unfolding.shape[2]]  # beyond, there is nothing
