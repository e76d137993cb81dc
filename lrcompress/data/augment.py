"""Augmentation of whole batches, on the device where the batch is."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def random_crop_and_flip(
    images: Float[Tensor, "n c h w"],
    *,
    padding: int,
    flip: bool,
    generator: torch.Generator,
) -> Float[Tensor, "n c h w"]:
    """Returns the images shifted by up to `padding` pixels and, half of them, mirrored.

    The standard light augmentation for small images: pad with zeros, crop at a random place, flip left to right
    (leave `flip` off where left and right differ in meaning: digits, letters).

    Args:
        images: a batch of images in [0, 1].
        padding: the largest shift in pixels, in both directions.
        flip: whether to mirror images left to right with probability 1/2.
        generator: a CPU generator, the only source of randomness.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    top = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    rows = (top + torch.arange(height)).to(images.device)
    columns = left + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    columns = columns.to(images.device)
    picked = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
