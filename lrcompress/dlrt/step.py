"""The two changes of basis in a DLRT cycle, as pure functions of one layer's factors.

Source: Schotthöfer, Yang, Schnake 2025 (arXiv 2505.08022), Algorithm 1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lrcompress.linalg import Factors, extend_basis, truncate_core


class BasisChange(NamedTuple):
    """How the core moves into new bases: S ↦ left S right, with left = ÛᵀU and right = VᵀV̂."""

    left: Float[Tensor, "q r"]
    right: Float[Tensor, "r q"]


def augment(
    factors: Factors, grad_U: Float[Tensor, "m r"], grad_V: Float[Tensor, "n r"]
) -> tuple[Factors, BasisChange]:
    """Returns the factors in bases extended by the gradient directions; U S Vᵀ is unchanged to rounding.

    The new rank is min(2r, m, n), whatever the largest rank that is allowed after truncation: bases must be able to
    turn even where the rank may not grow.

    Args:
        factors: U, S, V with orthonormal columns in U and V.
        grad_U: ∂L/∂U at these factors.
        grad_V: ∂L/∂V at these factors.
    """
    U, S, V = factors
    rank = min(2 * S.shape[0], U.shape[0], V.shape[0])
    U_hat, V_hat = extend_basis(U, grad_U, rank), extend_basis(V, grad_V, rank)
    change = BasisChange(U_hat.T @ U, V.T @ V_hat)
    return Factors(U_hat, change.left @ S @ change.right, V_hat), change


def truncate(factors: Factors, *, tol: float, min_rank: int, max_rank: int) -> tuple[Factors, BasisChange]:
    """Returns the factors at the smallest rank with a tail of at most tol·‖S‖_F, with a diagonal core.

    Args:
        factors: U, S, V with orthonormal columns in U and V.
        tol: τ, relative to the norm of this core.
        min_rank: smallest rank to return.
        max_rank: largest rank to return, even if the tail is then larger.
    """
    U, S, V = factors
    P, sigma, Q = truncate_core(S, tol=tol, min_rank=min_rank, max_rank=max_rank)
    return Factors(U @ P, torch.diag(sigma), V @ Q), BasisChange(P.T, Q)
