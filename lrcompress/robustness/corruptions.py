"""Common corruptions: noise, blur, weather and digital artefacts, in five severities, seeded image by image.

Names and strengths follow Hendrycks, Dietterich 2019 (arXiv 1903.12261), those for ImageNet; lengths are given for
images of 224 pixels and scaled to others, those of blurs by what is published for CIFAR at 32 pixels. They are made in
memory and by other means than the published files, with which figures cannot be compared: fog is a sum of octaves, snow
is drawn; frost, which needs photographs, and glass are missing.
"""

import io
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lrcompress.perturb import normal, uniform

SEVERITIES = (1, 2, 3, 4, 5)
# Lengths in the tables below are for images of this side.
SIDE, SMALL_SIDE = 224, 32
Images = Float[Tensor, "n c h w"]
Seeds = Int[Tensor, "n"]


def corrupt(images: Images, name: str, severity: int, seeds: Seeds) -> Images:
    """Returns corrupted images in [0, 1].

    Args:
        images: in [0, 1].
        name: of one of `CORRUPTIONS`.
        severity: 1 to 5.
        seeds: one per image; what becomes of it depends on nothing else.
    """
    return CORRUPTIONS[name](images, severity - 1, seeds).clamp(0, 1)


def corruptions_for(channels: int) -> tuple[str, ...]:
    """Returns the names of the corruptions that do something to images of so many channels."""
    return tuple(name for name in CORRUPTIONS if name != "saturate" or channels == 3)


def _gaussian_noise(x: Images, level: int, seeds: Seeds) -> Images:
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * _normal_like(x, seeds)


def _shot_noise(x: Images, level: int, seeds: Seeds) -> Images:
    photons = (60, 25, 12, 5, 3)[level]
    return _poisson(photons * x, _uniform_like(x, seeds), most=2 * photons + 20) / photons


def _impulse_noise(x: Images, level: int, seeds: Seeds) -> Images:
    share, drawn = (0.03, 0.06, 0.09, 0.17, 0.27)[level], _uniform_like(x, seeds)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, x))


def _speckle_noise(x: Images, level: int, seeds: Seeds) -> Images:
    return x + x * (0.15, 0.2, 0.35, 0.45, 0.6)[level] * _normal_like(x, seeds)


def _gaussian_blur(x: Images, level: int, seeds: Seeds) -> Images:
    return _blur(x, _between((0.4, 0.6, 0.7, 0.8, 1.0)[level], (1, 2, 3, 4, 6)[level], x))


def _defocus_blur(x: Images, level: int, seeds: Seeds) -> Images:
    radius = _between((0.7, 0.9, 1.1, 1.3, 1.6)[level], (3, 4, 6, 8, 10)[level], x)
    reach = max(1, math.ceil(radius))
    along = torch.arange(-reach, reach + 1, device=x.device)
    disk = (radius + 0.5 - (along[:, None] ** 2 + along**2).sqrt()).clamp(0, 1)  # its edge is soft
    return _filter(x, (disk / disk.sum()).expand(len(x), -1, -1))


def _motion_blur(x: Images, level: int, seeds: Seeds) -> Images:
    length = max(1.0, _scaled((10, 15, 15, 15, 20)[level], x) * (0.6, 0.7, 0.8, 0.9, 1.0)[level])
    angle = math.pi * (uniform(seeds, 1)[:, 0] - 0.5) / 2
    reach = max(1, math.ceil(length))
    along = torch.arange(-reach, reach + 1, device=x.device).float()
    down, right = along[:, None], along[None, :]
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    position, distance = right * cosine + down * sine, (down * cosine - right * sine).abs()
    line = (1 - distance).clamp_min(0) * (length + 0.5 - position.abs()).clamp(0, 1)
    return _filter(x, line / line.sum((1, 2), keepdim=True))


def _zoom_blur(x: Images, level: int, seeds: Seeds) -> Images:
    zooms = torch.arange(1.0, (1.11, 1.16, 1.21, 1.26, 1.31)[level], (0.01, 0.01, 0.02, 0.02, 0.03)[level])
    total = x.clone()
    for zoom in zooms.tolist():
        scale = torch.eye(2, 3, device=x.device) / zoom
        grid = F.affine_grid(scale.expand(len(x), -1, -1), list(x.shape), align_corners=False)
        total += F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return total / (len(zooms) + 1)


def _fog(x: Images, level: int, seeds: Seeds) -> Images:
    amount, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    clouds = _octaves(x, seeds, decay)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * clouds) * brightest / (brightest + amount)


def _snow(x: Images, level: int, seeds: Seeds) -> Images:
    share, strength, veil = (
        (0.02, 0.6, 0.1),
        (0.04, 0.7, 0.15),
        (0.06, 0.8, 0.2),
        (0.09, 0.9, 0.25),
        (0.13, 1.0, 0.3),
    )[level]
    _, _, height, width = x.shape
    flakes = (uniform(seeds, height * width).view(-1, 1, height, width) < share).float()
    fallen = _motion_blur(flakes, level, seeds)
    fallen = fallen / fallen.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
    grey = x.mean(1, keepdim=True)
    return (1 - veil) * x + veil * (0.5 * grey + 0.5) + strength * fallen


def _brightness(x: Images, level: int, seeds: Seeds) -> Images:
    return x + (0.1, 0.2, 0.3, 0.4, 0.5)[level]


def _contrast(x: Images, level: int, seeds: Seeds) -> Images:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (x - mean)


def _saturate(x: Images, level: int, seeds: Seeds) -> Images:
    factor, shift = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[level]
    grey = x.mean(1, keepdim=True)
    return grey + (factor + shift) * (x - grey)


def _elastic_transform(x: Images, level: int, seeds: Seeds) -> Images:
    shift, smooth = ((6.0, 14.0), (8.0, 12.0), (9.0, 9.0), (10.0, 7.0), (12.0, 6.0))[level]
    count, _, height, width = x.shape
    field = _blur(
        2 * uniform(seeds, 2 * height * width).view(count, 2, height, width) - 1, max(0.5, _scaled(smooth, x))
    )
    field = field / field.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-6) * _scaled(shift, x)
    still = F.affine_grid(torch.eye(2, 3, device=x.device).expand(count, -1, -1), list(x.shape), align_corners=False)
    moved = still + 2 * field.permute(0, 2, 3, 1) / torch.tensor([width, height], device=x.device)
    return F.grid_sample(x, moved, padding_mode="reflection", align_corners=False)


def _pixelate(x: Images, level: int, seeds: Seeds) -> Images:
    share, sides = (0.6, 0.5, 0.4, 0.3, 0.25)[level], x.shape[2:]
    small = F.interpolate(x, [max(1, round(share * side)) for side in sides], mode="area")
    return F.interpolate(small, list(sides), mode="nearest")


def _jpeg_compression(x: Images, level: int, seeds: Seeds) -> Images:
    from PIL import Image

    quality, done = (25, 18, 15, 10, 7)[level], []
    for image in x.cpu():
        planes = [image] if len(image) == 3 else [plane[None] for plane in image]
        parts = []
        for plane in planes:
            pixels = (255 * plane.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            buffer = io.BytesIO()
            Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(buffer, "JPEG", quality=quality)
            read = torch.frombuffer(bytearray(Image.open(buffer).tobytes()), dtype=torch.uint8)
            parts.append(read.view(*plane.shape[1:], len(plane)).permute(2, 0, 1).float() / 255)
        done.append(torch.cat(parts))
    return torch.stack(done).to(x.device)


CORRUPTIONS: dict[str, Callable[[Images, int, Seeds], Images]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "fog": _fog,
    "snow": _snow,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturate": _saturate,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}


def _scaled(length: float, x: Images) -> float:
    """Returns a length that is given for images of 224 pixels as it is for these."""
    return length * min(x.shape[2:]) / SIDE


def _between(small: float, large: float, x: Images) -> float:
    """Returns a length between the one for images of 32 pixels or fewer and the one for 224."""
    share = (min(x.shape[2:]) - SMALL_SIDE) / (SIDE - SMALL_SIDE)
    return small + max(0.0, share) * (large - small)


def _normal_like(x: Images, seeds: Seeds) -> Images:
    return normal(seeds, x[0].numel()).view(x.shape)


def _uniform_like(x: Images, seeds: Seeds) -> Images:
    return uniform(seeds, x[0].numel()).view(x.shape)


def _poisson(rates: Images, drawn: Images, *, most: int) -> Images:
    """Returns Poisson counts, at most `most`, by inversion of the distribution at uniform numbers."""
    mass = torch.exp(-rates)
    reached, counts = mass.clone(), torch.zeros_like(rates)
    for count in range(1, most + 1):
        counts += drawn > reached
        mass = mass * rates / count
        reached += mass
    return counts


def _blur(x: Images, sigma: float) -> Images:
    reach = max(1, math.ceil(3 * sigma))
    along = torch.arange(-reach, reach + 1, device=x.device)
    weights = torch.exp(-0.5 * (along / max(sigma, 1e-3)) ** 2)
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights)
    return _filter(x, kernel.expand(len(x), -1, -1))


def _filter(x: Images, kernels: Float[Tensor, "n k k"]) -> Images:
    """Returns each image filtered by a kernel of its own, mirrored at its border."""
    count, channels, height, width = x.shape
    reach = kernels.shape[1] // 2
    padded = x
    while reach > 0:  # mirroring reaches no farther than the image
        step = min(reach, min(padded.shape[2:]) - 1)
        padded = F.pad(padded, (step,) * 4, mode="reflect")
        reach -= step
    flat = padded.reshape(1, count * channels, *padded.shape[2:])
    weights = kernels.repeat_interleave(channels, 0)[:, None]
    return F.conv2d(flat, weights, groups=count * channels).view(count, channels, height, width)


def _octaves(x: Images, seeds: Seeds, decay: float) -> Float[Tensor, "n 1 h w"]:
    """Returns clouds in [0, 1]: smooth noise of 2, 4, 8 … cells, each octave weaker by a factor."""
    count, _, height, width = x.shape
    clouds, cells, weight = x.new_zeros(count, 1, height, width), 2, 1.0
    while cells <= 2 * min(height, width):
        drawn = uniform(seeds, cells * cells, stream=cells).view(count, 1, cells, cells)
        clouds += weight * F.interpolate(drawn, [height, width], mode="bilinear", align_corners=False)
        cells, weight = 2 * cells, weight / decay
    low, high = clouds.amin((1, 2, 3), keepdim=True), clouds.amax((1, 2, 3), keepdim=True)
    return (clouds - low) / (high - low).clamp_min(1e-6)
