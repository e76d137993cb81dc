"""Starts, steps and projections of attacks in ℓp balls around images in [0, 1]."""

import torch
from jaxtyping import Float
from torch import Tensor

from lrcompress.perturb.norms import Norm

Images = Float[Tensor, "n c h w"]


def random_start(
    images: Images, eps: float, norm: Norm, *, generator: torch.Generator, place: tuple[int, int] | None = None
) -> Images:
    """Returns images drawn from the ball around each image: uniformly in ℓ∞, in a random direction and radius in ℓ2.

    Args:
        images: in [0, 1].
        eps: radius in the same units.
        norm: of the ball.
        generator: a CPU generator, the only source of randomness.
        place: (number of the first image in a whole batch, images in it), if these images are a part of one; they are
            then moved as they would be with all others.
    """
    first, whole = place or (0, len(images))
    shape = (whole, *images.shape[1:])
    if norm == "linf":
        delta = eps * (2 * torch.rand(shape, generator=generator) - 1)
    else:
        delta = torch.randn(shape, generator=generator)
        radii = eps * torch.rand(whole, 1, 1, 1, generator=generator)
        delta = radii * _unit(delta)
    return (images + delta[first : first + len(images)].to(images)).clamp(0, 1)


def ascend(moved: Images, gradient: Images, size: float, norm: Norm) -> Images:
    """Returns the images one step of a given size up a gradient: its sign in ℓ∞, its direction in ℓ2."""
    return moved + size * (gradient.sign() if norm == "linf" else _unit(gradient))


def project(moved: Images, images: Images, eps: float, norm: Norm) -> Images:
    """Returns the moved images brought back into the ball around the images, and into [0, 1]."""
    delta = moved - images
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        sizes = delta.flatten(1).norm(dim=1)[:, None, None, None]
        delta = delta * (eps / sizes.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1)
    return (images + delta).clamp(0, 1)


def _unit(vectors: Images) -> Images:
    # By the largest entry first: squares of the tiny gradients of a confident network vanish.
    tiny = torch.finfo(vectors.dtype).tiny
    vectors = vectors / vectors.abs().amax((1, 2, 3), keepdim=True).clamp_min(tiny)
    return vectors / vectors.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(tiny)
