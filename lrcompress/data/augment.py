"""What may be done to training images at random, and the part of it that is done to whole batches."""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrcompress.errors import OptionError

# Of what this does not match, timm ignores or misreads the most: `rand-mstd` or `rand-tsomething`, say.
RANDAUGMENT = re.compile(r"rand(-(m\d+|n[1-9]|p(0(\.\d+)?|1(\.0+)?)|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*")


@dataclass(frozen=True)
class Augmentation:
    """The random changes of training images. Images that are measured on are never changed.

    Attributes:
        crop: largest random shift in pixels of the network's input, in both directions; what comes in is black.
        flip: whether images are mirrored left to right with probability 1/2; leave it off where left and right differ
            in meaning: digits, letters.
        crop_scale: (smallest, largest) share of the picture's area, in [0.01, 1], that a random crop keeps before it is
            resized to the network's input, with an aspect ratio from 3/4 to 4/3; None for no such crops. They take the
            place of the shifts. Pictures from files are cropped at their full resolution, images in memory at the
            network's input size.
        randaugment: timm's configuration of RandAugment, "rand-m9-mstd0.5-inc1" for example; None for none. Works on
            8-bit images of one or three channels.
        mixup: α of the Beta(α, α) distribution from which each batch draws the share of the second image; 0 for none.
        cutmix: α of the distribution of the area that a box of the second image covers; 0 for none. With mixup too,
            each batch draws one of both.

    Raises:
        OptionError: if a value is out of its range.
    """

    crop: int = 2
    flip: bool = True
    crop_scale: tuple[float, float] | None = None
    randaugment: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        _require(self.crop >= 0, "--crop", "0 or more", self.crop)
        if self.crop_scale is not None:
            smallest, largest = self.crop_scale
            # Less than a hundredth of a small image is less than one pixel.
            in_range = 0.01 <= smallest <= largest <= 1
            _require(in_range, "--crop-scale", "two rising areas in [0.01, 1]", self.crop_scale)
        known = self.randaugment is None or RANDAUGMENT.fullmatch(self.randaugment) is not None
        _require(known, "--randaugment", 'written as timm does, "rand-m9-mstd0.5-inc1" say', self.randaugment)
        _require(math.isfinite(self.mixup) and self.mixup >= 0, "--mixup", "0 or more", self.mixup)
        _require(math.isfinite(self.cutmix) and self.cutmix >= 0, "--cutmix", "0 or more", self.cutmix)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that targets are soft."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def padding(self) -> int:
        """The shifts that are done, in pixels: none where random crops take their place."""
        return self.crop if self.crop_scale is None else 0

    @property
    def changes_pictures(self) -> bool:
        """Whether something is done image by image, by PIL."""
        return self.crop_scale is not None or self.randaugment is not None


def _require(condition: bool, option: str, allowed: str, value: object) -> None:
    if not condition:
        raise OptionError(f"{option} must be {allowed}, got {value}", hint="lrcompress compress --help")


def shift_and_mirror(
    images: Float[Tensor, "n c h w"], *, padding: int, shifts: Int[Tensor, "n 2"], mirrored: Bool[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Returns the images padded by `padding` zeros, cut to their size at the given places, and then mirrored.

    Args:
        images: a batch of images, on any device.
        padding: p in pixels, on each side.
        shifts: top and left of the cut in the padded image, each in [0, 2p]; p is the middle.
        mirrored: which images are mirrored left to right.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = (shifts[:, :1] + torch.arange(height)).to(images.device)
    columns = shifts[:, 1:] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns).to(images.device)
    picked = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
    count = len(images)
    top = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    mirrored = torch.zeros(count, dtype=torch.bool)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator)[:, 0] < 0.5
    return shift_and_mirror(images, padding=padding, shifts=torch.cat([top, left], 1), mirrored=mirrored)
