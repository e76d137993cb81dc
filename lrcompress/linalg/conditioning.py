"""Condition numbers and the spectral regulariser that controls them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def condition_number(sigma: Float[Tensor, "r"]) -> float:
    """Returns κ = σ₁/σ_r of the singular values (in descending order); infinite if σ_r is zero.

    A diagnostic of the core, not a certificate: the layer is rank-deficient, so its sensitivity has no such bound.
    """
    smallest = float(sigma[-1])
    return float(sigma[0]) / smallest if smallest > 0 else math.inf


def stable_rank(sigma: Float[Tensor, "r"]) -> float:
    """Returns ‖W‖_F²/σ₁², a rank that does not count negligible directions; 0 for a zero matrix."""
    largest = float(sigma[0])
    return float(sigma.square().sum()) / largest**2 if largest > 0 else 0.0


def core_spectrum(core: Float[Tensor, "g r s"]) -> Float[Tensor, "k"]:
    """Returns the singular values of a core, or of its unfolding, of all groups, in descending order and float64."""
    return torch.linalg.svdvals(core.detach().double()).flatten().sort(descending=True).values


def core_condition_number(core: Float[Tensor, "g r s"]) -> float:
    """Returns κ = σ₁/σ_r of a core, or of its unfolding, the largest of its groups."""
    sigma = torch.linalg.svdvals(core.detach().double())
    return max(condition_number(values) for values in sigma)


def conditioning_penalty(core: Float[Tensor, "*g r s"], *, scale_free: bool) -> Float[Tensor, ""]:
    """Returns R(S) = ‖SᵀS − α²I‖_F with α² = ‖S‖_F²/r, or the scale-free R/α², summed over a batch of cores.

    Zero exactly when all singular values are equal. R is the paper's; in front of a normalisation layer it can be
    reduced by shrinking S, which conditions nothing: R/α² cannot. The gradient at R = 0, where the norm is not
    differentiable, is zero. Of an S that is wider than high S Sᵀ is taken, which has no zeros of its own.

    Args:
        core: S, differentiable; computed in float32 even under autocast.
        scale_free: whether to divide by α².

    Source: Schotthöfer et al. 2025, eq. for R; here `conditioning_penalty`, theirs R(S).
    """
    with torch.autocast(core.device.type, enabled=False):
        core = core.float() if core.dtype in (torch.float16, torch.bfloat16) else core
        # By its largest entry: what is squared twice here would leave the range of float32.
        scale = core.detach().abs().amax((-2, -1), keepdim=True)
        scale = torch.where(scale > torch.finfo(core.dtype).tiny, scale, 1.0)
        core = core / scale
        gram = core @ core.mT if core.shape[-2] < core.shape[-1] else core.mT @ core
        size = gram.shape[-1]
        identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
        alpha_sq = gram.diagonal(dim1=-2, dim2=-1).sum(-1) / size
        deviation = gram - alpha_sq[..., None, None] * identity
        # Below this R is rounding noise of the Gram matrix, and its direction random: no gradient there.
        floor = (8 * torch.finfo(gram.dtype).eps * size**0.5 * alpha_sq) ** 2
        squared = deviation.square().sum((-2, -1))
        penalty = torch.where(squared > floor, squared, 1.0).sqrt() * (squared > floor)
        if scale_free:
            penalty = penalty / torch.where(alpha_sq > 0, alpha_sq, 1.0)
        else:
            penalty = penalty * scale[..., 0, 0].square()
        return penalty.sum()
