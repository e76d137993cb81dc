"""Truncated singular value decompositions: of a layer's weight matrices, and of the small core during training."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# From this side length on a Gram matrix is computed in some blocks, and those below the diagonal are copied.
BLOCKED = 512
BLOCKS = 6
COLUMNS = 2048


class Factors(NamedTuple):
    """W ≈ U S Vᵀ with orthonormal columns in U (m×r) and V (n×r) and an r×r core S, not necessarily diagonal."""

    U: Float[Tensor, "m r"]
    S: Float[Tensor, "r r"]
    V: Float[Tensor, "n r"]


class PrincipalBasis(NamedTuple):
    """The directions of one side of a matrix in the order of what they carry.

    Attributes:
        energies: squared singular values in float64, in descending order, min(m, n) of them.
        basis: orthonormal columns, those of the output side (m rows) or of the input side (n rows).
        of_outputs: which side.
    """

    energies: Float[Tensor, "k"]
    basis: Float[Tensor, "s k"]
    of_outputs: bool


def principal_basis(weight: Float[Tensor, "m n"], *, output_gram: Float[Tensor, "m m"] | None = None) -> PrincipalBasis:
    """Returns the singular values and the singular vectors of the shorter side.

    Both come from the eigendecomposition of the float64 Gram matrix of that side: the values are good to about
    1e-8·σ₁, the vectors orthonormal however small the values are, at a fraction of the time of a full decomposition.

    Args:
        weight: the matrix W, of any floating-point type.
        output_gram: W C Wᵀ for inputs with second moment C, see `damped_output_gram`: values and vectors are then
            those of W C^{1/2}, on the output side.
    """
    of_outputs = output_gram is not None or weight.shape[0] <= weight.shape[1]
    side = weight if of_outputs else weight.T
    values, vectors = torch.linalg.eigh(gram(side) if output_gram is None else output_gram.double())
    count = min(weight.shape)
    return PrincipalBasis(values.clamp_min(0).flip(0)[:count], vectors.flip(1)[:, :count], of_outputs)


def two_factors(
    weight: Float[Tensor, "m n"], basis: Float[Tensor, "s r"], *, of_outputs: bool
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]]:
    """Returns (expand, reduce) whose product is the projection of `weight` onto an orthonormal basis of one side.

    Computed in the weight's type: one product, whose rounding is that of the weight itself.
    """
    basis = basis.to(weight.dtype)
    return (basis, basis.T @ weight) if of_outputs else (weight @ basis, basis.T)


def damped_output_gram(
    output_gram: Float[Tensor, "m m"], weight: Float[Tensor, "m n"], *, damping: float
) -> Float[Tensor, "m m"]:
    """Returns W (C + λI) Wᵀ in float64, scaled to a trace of 1 + damping, from the W C Wᵀ of some sampled inputs.

    λ is chosen so that λ W Wᵀ has `damping` times the trace of W C Wᵀ. It decides between directions that the samples
    say nothing about, however few they are; without any signal at all only W Wᵀ remains.

    Args:
        output_gram: the sum of y yᵀ over the outputs y = W x, without a bias.
        weight: W.
        damping: positive.
    """
    own = gram(weight)
    sampled, trace = output_gram.double(), output_gram.double().trace()
    return sampled / torch.where(trace > 0, trace, 1.0) + damping * own / own.trace()


def truncation_rank(sigma: Float[Tensor, "k"], tol: float) -> int:
    """Returns the smallest r with sqrt(Σ_{i>r} σ_i²) ≤ tol·sqrt(Σ σ_i²); 0 if all singular values are zero.

    Args:
        sigma: singular values in descending order.
        tol: the relative tolerance.

    Source: Schotthöfer et al. 2025, truncation step; here `tol`, theirs τ.
    """
    tails = tail_energies(sigma.double().square())
    # Not <: an all-zero matrix has tails and a bound of zero.
    return int((tails <= tol**2 * tails[0]).nonzero()[0])


def tail_energies(energies: Float[Tensor, "k"]) -> Float[Tensor, "k1"]:
    """Returns Σ_{i>r} of the energies for r = 0 … k, summed from the last one up, to lose nothing to rounding."""
    return torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])


def truncated_svd(
    weight: Float[Tensor, "m n"], rank: int, *, output_gram: Float[Tensor, "m m"] | None = None
) -> Factors:
    """Returns the best approximation of `rank`, as float64 factors.

    The basis of one side is the `principal_basis`, that of the other side comes from a QR decomposition of the
    projected weight. Both are orthonormal to rounding, and U S Vᵀ is the exact projection of `weight` onto the
    first basis, however small the singular values are; at full rank it is `weight` itself.

    Args:
        weight: the matrix, of any floating-point type.
        rank: number of singular triplets to keep, in [1, min(m, n)].
        output_gram: W C Wᵀ for inputs with second moment C, see `damped_output_gram`. The approximation is then best
            for these inputs: it minimises ‖(W − W_r) C^{1/2}‖ and not ‖W − W_r‖.

    Raises:
        ValueError: if `rank` is out of range.
    """
    m, n = weight.shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank must be in [1, {min(m, n)}] for a {m}x{n} matrix, got {rank}")
    matrix = weight.double()
    principal = principal_basis(weight, output_gram=output_gram)
    leading = principal.basis[:, :rank]
    if principal.of_outputs:
        V, core = torch.linalg.qr(matrix.T @ leading)
        return Factors(leading, core.T.contiguous(), V)
    U, core = torch.linalg.qr(matrix @ leading)
    return Factors(U, core, leading)


def truncate_core(
    core: Float[Tensor, "r r"], *, tol: float, min_rank: int, max_rank: int
) -> tuple[Float[Tensor, "r s"], Float[Tensor, "s"], Float[Tensor, "r s"]]:
    """Returns (P, σ, Q) with core ≈ P diag(σ) Qᵀ at the smallest rank within `tol`, held in [min_rank, max_rank].

    Decomposes in float64: the core is small, and the ranks must not depend on rounding. Result in the core's type.
    """
    P, sigma, Qt = torch.linalg.svd(core.double())
    rank = min(max(truncation_rank(sigma, tol), min_rank), max_rank, len(sigma))
    dtype = core.dtype
    return P[:, :rank].to(dtype), sigma[:rank].to(dtype), Qt[:rank].T.to(dtype)


def gram(matrix: Float[Tensor, "k l"]) -> Float[Tensor, "k k"]:
    """Returns the Gram matrix of the rows in float64; what is below the diagonal is not computed a second time."""
    count = matrix.shape[0]
    step = count if count < BLOCKED else -(-count // BLOCKS)
    result = matrix.new_zeros(count, count, dtype=torch.float64)
    # Some columns at a time: a copy of the whole matrix in float64 may be large.
    for columns in matrix.split(COLUMNS, dim=1):
        part = columns.double()
        for start in range(0, count, step):
            result[start : start + step, start:] += part[start : start + step] @ part[start:].T
    for start in range(step, count, step):
        result[start : start + step, :start] = result[:start, start : start + step].T
    return result
