"""Starts, steps and projections of attacks in ℓp balls around images in [0, 1]."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lrcompress.perturb.draws import normal, uniform
from lrcompress.perturb.norms import Norm, perturbation_sizes

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


def seeded_start(images: Images, eps: float, norm: Norm, *, seeds: Int[Tensor, "n"], at_radius: bool = False) -> Images:
    """Returns images drawn from the ball around each image, each by its own seed (see `perturb.draws`).

    Uniformly in ℓ∞, in a random direction and radius otherwise.

    Args:
        images: in [0, 1].
        eps: radius in the same units.
        norm: of the ball.
        seeds: one per image, on the images' device.
        at_radius: whether all the radius is used in ℓ2 and ℓ1.
    """
    shape, count = images.shape, images[0].numel()
    if norm == "linf":
        delta = eps * (2 * uniform(seeds, count).view(shape) - 1)
    else:
        # Gaussian directions are uniform in ℓ2, double exponential ones in ℓ1.
        drawn = normal(seeds, count) if norm == "l2" else _laplace(uniform(seeds, count))
        delta = eps * drawn.view(shape) / perturbation_sizes(drawn.view(shape), norm)[:, None, None, None]
        if not at_radius:
            delta = delta * uniform(seeds, 1, stream=1)[:, :, None, None]
    return project(images + delta.to(images.dtype), images, eps, norm)


def ascend(moved: Images, gradient: Images, size: float | Tensor, norm: Norm) -> Images:
    """Returns the images one step up a gradient: along its sign in ℓ∞, its direction in ℓ2, its largest entries in ℓ1.

    Args:
        moved: the images.
        gradient: of what is to rise.
        size: of the step, for all images or of shape (n, 1, 1, 1).
        norm: of the ball.

    Source: for ℓ1 Tramèr, Boneh 2019 (arXiv 1904.13000), with a hundredth of the entries.
    """
    if norm == "linf":
        return moved + size * gradient.sign()
    if norm == "l2":
        return moved + size * _unit(gradient)
    # What is at the end of its range cannot go further: a step there would be lost.
    outward = ((moved <= 0) & (gradient < 0)) | ((moved >= 1) & (gradient > 0))
    flat = (gradient * ~outward).flatten(1)
    count = max(1, flat.shape[1] // 100)
    largest = flat.abs().topk(count, dim=1).indices
    chosen = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign() / count)
    return moved + size * chosen.view_as(gradient)


def project(moved: Images, images: Images, eps: float, norm: Norm) -> Images:
    """Returns the moved images brought back into the ball around the images, and into [0, 1]."""
    delta = moved - images
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    elif norm == "l2":
        sizes = delta.flatten(1).norm(dim=1)[:, None, None, None]
        delta = delta * (eps / sizes.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1)
    else:
        delta = _onto_l1_ball(delta, images, eps)
    return (images + delta).clamp(0, 1)


def _onto_l1_ball(delta: Images, images: Images, eps: float) -> Images:
    """Returns the nearest perturbations that lie in the ball and keep the images in [0, 1].

    All entries are shrunk by the same λ, but none stays larger than its room to the end of the range. Clipping after a
    projection onto the ball alone would leave a part of ε unused.

    Source: Croce, Hein 2021 (arXiv 2103.01208), Proposition 2.1.
    """
    sizes = delta.flatten(1).abs()
    room = torch.where(delta > 0, 1 - images, images).flatten(1)
    # As λ falls, an entry begins to count at its size, and stops growing where it fills its room.
    turns, order = torch.cat([sizes, (sizes - room).clamp_min(0)], 1).sort(dim=1, descending=True)
    slopes = torch.where(order < sizes.shape[1], 1.0, -1.0).cumsum(1)
    sums = (slopes[:, :-1] * (turns[:, :-1] - turns[:, 1:])).cumsum(1)  # with λ at each turn but the first
    before = (sums < eps).sum(1, keepdim=True).clamp_max(sums.shape[1] - 1)  # the last turn at which they are too small
    reached = torch.where(before > 0, sums.gather(1, (before - 1).clamp_min(0)), 0.0)
    steps = (eps - reached) / slopes.gather(1, before).clamp_min(1)
    cut = (turns.gather(1, before) - steps).clamp_min(0)
    left = torch.minimum((sizes - cut).clamp_min(0), room)
    left = left * (eps / left.sum(1, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1)  # of rounding
    shrunk = delta.sign() * left.view_as(delta)
    # What lies within already stays as it is, to the last bit.
    inside = (torch.minimum(sizes, room).sum(1) <= eps)[:, None, None, None]
    return torch.where(inside, delta, shrunk)


def _laplace(uniform: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    centred = uniform - 0.5
    return -centred.sign() * torch.log1p(-2 * centred.abs().clamp_max(0.5 - 1e-7))


def _unit(vectors: Images) -> Images:
    # By the largest entry first: squares of the tiny gradients of a confident network vanish.
    tiny = torch.finfo(vectors.dtype).tiny
    vectors = vectors / vectors.abs().amax((1, 2, 3), keepdim=True).clamp_min(tiny)
    return vectors / vectors.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(tiny)
