"""Singular values and vectors of a layer's weight matrices, and what is left out when they are truncated."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# From this side length on a Gram matrix is computed in some blocks, and those below the diagonal are copied.
BLOCKED = 512
BLOCKS = 6
COLUMNS = 2048


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


def singular_values(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "k"]:
    """Returns the min(m, n) singular values in descending order, in float64.

    From the Gram matrix of the shorter side, as those of `principal_basis`, and as good: to about 1e-8·σ₁.
    """
    side = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh(gram(side)).clamp_min(0).sqrt().flip(0)


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


def tail_energies(energies: Float[Tensor, "k"]) -> Float[Tensor, "k1"]:
    """Returns Σ_{i>r} of the energies for r = 0 … k, summed from the last one up, to lose nothing to rounding."""
    return torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])


def gram(matrix: Float[Tensor, "k l"]) -> Float[Tensor, "k k"]:
    """Returns the Gram matrix of the rows in float64, symmetric to the bit: what is below the diagonal is copied."""
    count = matrix.shape[0]
    step = count if count < BLOCKED else -(-count // BLOCKS)
    result = matrix.new_zeros(count, count, dtype=torch.float64)
    # Some columns at a time: a copy of the whole matrix in float64 may be large.
    for columns in matrix.split(COLUMNS, dim=1):
        part = columns.double()
        for start in range(0, count, step):
            result[start : start + step, start:] += part[start : start + step] @ part[start:].T
    for start in range(0, count, step):
        result[start : start + step, :start] = result[:start, start : start + step].T
        # Not every BLAS gives both halves of a product with its own transpose the same bits.
        block = result[start : start + step, start : start + step]
        block.copy_(block.triu() + block.triu(1).T)
    return result
