"""The changes of basis in a DLRT cycle, as pure functions of one layer's factors.

Source: Schotthöfer, Yang, Schnake 2025 (arXiv 2505.08022), Algorithm 1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lrcompress.linalg import Factors, extend_basis, multiply_core, rotate_core, tail_energies


class BasisChange(NamedTuple):
    """How the core moves into new bases: S ↦ left S right, with left = ÛᵀU and right = VᵀV̂."""

    left: Float[Tensor, "g q r"]
    right: Float[Tensor, "g s t"]


def augment(
    factors: Factors, grad_U: Float[Tensor, "g m r"], grad_V: Float[Tensor, "g n s"]
) -> tuple[Factors, BasisChange]:
    """Returns the factors in bases extended by the gradient directions; their product is unchanged to rounding.

    The new ranks are min(2r, m) and min(2s, n), both min(2r, m, n) for matrices, whatever the largest rank that is
    allowed after truncation: bases must be able to turn even where the rank may not grow.

    Args:
        factors: U, S, V with orthonormal columns in U and V.
        grad_U: ∂L/∂U at these factors.
        grad_V: ∂L/∂V at these factors.
    """
    U, S, V = factors
    outputs, inputs = min(2 * S.shape[1], U.shape[1]), min(2 * S.shape[2], V.shape[1])
    if S.shape[3] == 1:
        outputs = inputs = min(outputs, inputs)
    U_hat, V_hat = extend_basis(U, grad_U, outputs), extend_basis(V, grad_V, inputs)
    change = BasisChange(U_hat.mT @ U, V.mT @ V_hat)
    return Factors(U_hat, multiply_core(change.left, S, change.right), V_hat), change


def rotate(factors: Factors) -> tuple[Factors, BasisChange]:
    """Returns the factors in the singular vectors of their core, the leading ones first. See `linalg.rotate_core`."""
    U, S, V = factors
    P, rotated, Q = rotate_core(S)
    return Factors(U @ P, rotated, V @ Q), BasisChange(P.mT, Q)


def possible_ranks(rotated: Factors) -> Int[Tensor, "k modes"]:
    """Returns all ranks to which the factors can be cut: one for matrices, pairs otherwise."""
    outputs, inputs, positions = rotated.S.shape[1:]
    if positions == 1:
        return torch.arange(1, outputs + 1)[:, None]
    return torch.cartesian_prod(torch.arange(1, outputs + 1), torch.arange(1, inputs + 1))


def squared_errors(rotated: Factors, ranks: Int[Tensor, "k modes"]) -> Float[Tensor, "k"]:
    """Returns ‖W − W_r‖²/‖W‖² of cutting rotated factors to some ranks, in float64; zeros if W is zero."""
    energies = rotated.S.double().square().sum((0, 3)).cpu()  # over groups and positions
    if rotated.S.shape[3] == 1:
        tails = tail_energies(energies.diagonal())
        return tails[ranks[:, 0]] / tails[0] if tails[0] > 0 else torch.zeros(len(ranks), dtype=torch.float64)
    explained = energies.cumsum(0).cumsum(1)
    total = explained[-1, -1]
    shares = explained[ranks[:, 0] - 1, ranks[:, 1] - 1] / torch.where(total > 0, total, 1.0)
    return (1 - shares).clamp_min(0) * (total > 0)


def mode_spectra(rotated: Factors) -> tuple[Float[Tensor, "r"], ...]:
    """Returns the singular values of the unfoldings of rotated factors relative to the norm of all, in float64.

    One spectrum for matrices, those of the output and of the input unfolding otherwise; over all groups, and zeros if
    W is zero.
    """
    energies = rotated.S.double().square().sum((0, 3)).cpu()
    total = energies.sum()
    modes = (energies.diagonal(),) if rotated.S.shape[3] == 1 else (energies.sum(1), energies.sum(0))
    return tuple((mode / torch.where(total > 0, total, 1.0)).sqrt() for mode in modes)


def cut(rotated: Factors, change: BasisChange, ranks: tuple[int, ...]) -> tuple[Factors, BasisChange]:
    """Returns rotated factors, and the change of basis that led to them, cut to some ranks."""
    outputs, inputs = ranks[0], ranks[-1]
    U, S, V = rotated
    factors = Factors(U[:, :, :outputs], S[:, :outputs, :inputs], V[:, :, :inputs])
    return factors, BasisChange(change.left[:, :outputs], change.right[:, :, :inputs])
