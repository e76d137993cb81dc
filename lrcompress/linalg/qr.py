"""Orthonormal bases that grow by new directions."""

import torch
from jaxtyping import Float
from torch import Tensor


def extend_basis(
    basis: Float[Tensor, "*g m r"], directions: Float[Tensor, "*g m k"], max_rank: int
) -> Float[Tensor, "*g m q"]:
    """Returns an orthonormal basis of [basis | directions] with q = min(r + k, m, max_rank) columns, at least r.

    The first r columns span `basis`. Where there is room for fewer than k new columns, the leading left singular
    vectors of the part of `directions` outside of `basis` are taken. Decomposes in the type of `basis`: both the
    projection and the final QR are backward stable, and orthonormality is restored on every call.

    Source: Schotthöfer et al. 2025, basis augmentation, Û = orth([U | G_U]).
    """
    rank = basis.shape[-1]
    room = max(min(rank + directions.shape[-1], basis.shape[-2], max_rank) - rank, 0)
    outside = directions - basis @ (basis.mT @ directions)
    # Gradients may be tiny or zero; the scale of the new columns must not matter to the QR.
    scale = torch.linalg.vector_norm(outside, dim=(-2, -1), keepdim=True)
    outside = outside / scale.clamp_min(torch.finfo(outside.dtype).tiny)
    if room < outside.shape[-1]:
        left, triangle = torch.linalg.qr(outside)
        outside = (left @ torch.linalg.svd(triangle).U)[..., :room]
    return torch.linalg.qr(torch.cat([basis, outside], dim=-1)).Q
