"""Randomised smoothing: a radius in which the smoothed classifier, not the model itself, cannot be misled.

Source: Cohen, Rosenfeld, Kolter 2019, Certified adversarial robustness via randomized smoothing (arXiv 1902.02918),
algorithm CERTIFY.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrcompress.errors import OptionError
from lrcompress.perturb import normal
from lrcompress.robustness.iterated import Passes, check_finite

GUESSES = 100  # samples that choose the class; others, which it does not depend on, bound its probability
ALPHA = 0.001


@dataclass(frozen=True)
class Smoothing:
    """How the classifier is smoothed.

    Attributes:
        sigma: standard deviation of the noise, in pixel units of images in [0, 1].
        samples: by which the probability of the class is bounded.

    Raises:
        OptionError: if a value is out of its range.
    """

    sigma: float = 0.25
    samples: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 10:
            raise OptionError(f"--sigma must be more than 0 and at most 10, got {self.sigma:g}", hint="--sigma 0.25")
        if self.samples < 10:
            raise OptionError(
                f"--smoothing-samples must be at least 10, got {self.samples}", hint="--smoothing-samples 1000"
            )

    def radii(self) -> tuple[float, ...]:
        """Returns the radii whose certified accuracy is told; 0 is that of being right without abstaining."""
        return tuple(part * self.sigma for part in (0, 0.5, 1, 1.5, 2, 3))


def certified_radii(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    seeds: Int[Tensor, "n"],
    smoothing: Smoothing,
    *,
    batch_size: int,
    passes: Passes,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[float | None]:
    """Returns for each image the ℓ2 radius certified with probability 1 − α; None where it is wrong or abstains.

    Args:
        model: takes images in [0, 1], and beyond: noise is not cut off.
        images: the clean images.
        labels: their classes.
        seeds: of the noise, one per image.
        smoothing: how.
        batch_size: noisy images at a time.
        passes: counted here.
        on_done: called with the number of images that are done.
    """
    radii: list[float | None] = []
    for number, (image, label, seed) in enumerate(zip(images, labels.tolist(), seeds, strict=True), start=1):
        counts = _vote(model, image, seed, smoothing.sigma, range(GUESSES), batch_size)
        chosen = int(counts.argmax())
        later = range(GUESSES, GUESSES + smoothing.samples)
        votes = int(_vote(model, image, seed, smoothing.sigma, later, batch_size)[chosen])
        passes.forward += GUESSES + smoothing.samples
        lower = _lower_bound(votes, smoothing.samples)
        radii.append(smoothing.sigma * NormalDist().inv_cdf(lower) if chosen == label and lower > 0.5 else None)
        on_done(number)
    return radii


def _vote(
    model: nn.Module, image: Float[Tensor, "c h w"], seed: Int[Tensor, ""], sigma: float, draws: range, batch_size: int
) -> Int[Tensor, "k"]:
    """Returns how often the model chooses each class under some draws of the noise."""
    counts = None
    for part in torch.arange(draws.start, draws.stop, device=image.device).split(batch_size):
        noise = normal(seed.expand(len(part)), image.numel(), stream=part).view(len(part), *image.shape)
        noisy = (image + sigma * noise).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            logits = check_finite(model(noisy))
        found = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        counts = found if counts is None else counts + found
    assert counts is not None  # there is at least one draw
    return counts


def _lower_bound(votes: int, samples: int) -> float:
    """Returns the one-sided Clopper-Pearson bound of a probability at confidence 1 − α."""
    from scipy.stats import binomtest

    return float(binomtest(votes, samples, alternative="greater").proportion_ci(1 - ALPHA, method="exact").low)
