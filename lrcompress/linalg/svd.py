"""Truncated singular value decompositions: of a layer's weight matrix, and of the small core during training."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Factors(NamedTuple):
    """W ≈ U S Vᵀ with orthonormal columns in U (m×r) and V (n×r) and an r×r core S, not necessarily diagonal."""

    U: Float[Tensor, "m r"]
    S: Float[Tensor, "r r"]
    V: Float[Tensor, "n r"]


def singular_values(
    weight: Float[Tensor, "m n"], *, output_gram: Float[Tensor, "m m"] | None = None
) -> Float[Tensor, "k"]:
    """Returns the min(m, n) singular values in float64, in descending order.

    They are square roots of the eigenvalues of the float64 Gram matrix of the shorter side: good to about 1e-8·σ₁, at
    a fraction of the time of a full decomposition.

    Args:
        weight: the matrix W, of any floating-point type.
        output_gram: W C Wᵀ for inputs with second moment C, see `damped_output_gram`: the values are then those of
            W C^{1/2}.
    """
    gram = _gram(weight) if output_gram is None else output_gram.double()
    return torch.linalg.eigvalsh(gram).clamp_min(0).flip(0).sqrt()[: min(weight.shape)]


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
    own = weight.double() @ weight.double().T
    sampled, trace = output_gram.double(), output_gram.double().trace()
    return sampled / torch.where(trace > 0, trace, 1.0) + damping * own / own.trace()


def truncation_rank(sigma: Float[Tensor, "k"], tol: float) -> int:
    """Returns the smallest r with sqrt(Σ_{i>r} σ_i²) ≤ tol·sqrt(Σ σ_i²); 0 if all singular values are zero.

    Args:
        sigma: singular values in descending order.
        tol: the relative tolerance.

    Source: Schotthöfer et al. 2025, truncation step; here `tol`, theirs τ.
    """
    squares = sigma.double().square()
    # tails[r] is the sum over i > r, summed from the smallest value up to lose nothing to rounding.
    tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    # Not <: an all-zero matrix has tails and a bound of zero.
    return int((tails <= tol**2 * tails[0]).nonzero()[0])


def truncated_svd(
    weight: Float[Tensor, "m n"], rank: int, *, output_gram: Float[Tensor, "m m"] | None = None
) -> Factors:
    """Returns the best approximation of `rank`, as float64 factors.

    The basis of the shorter side comes from the eigenvectors of the Gram matrix, the other one from a QR decomposition
    of the projected weight. Both are orthonormal to rounding, and U S Vᵀ is the exact projection of `weight` onto the
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
    _, vectors = torch.linalg.eigh(_gram(weight) if output_gram is None else output_gram.double())
    leading = vectors[:, -rank:].flip(1)
    if m <= n or output_gram is not None:
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


def _gram(weight: Float[Tensor, "m n"]) -> Float[Tensor, "k k"]:
    matrix = weight.double()
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
