"""Radii for whoever names none: such that something happens between the smallest and the largest."""

import torch
from torch import Tensor, nn

from lrcompress.robustness.attacks import DEFAULT_EPS, AttackSettings
from lrcompress.robustness.iterated import run_stream
from lrcompress.robustness.pgd import Pgd
from lrcompress.robustness.seeds import image_seeds

TRIED, STEPS, ROUNDS = 64, 10, 4
# Of the images that the model knows; a share in between tells something.
FLOOR, CEILING = 0.05, 0.95
SMALLER, LARGER = 8, 4


def choose_eps(model: nn.Module, pixels: Tensor, labels: Tensor, settings: AttackSettings) -> tuple[float, ...]:
    """Returns the usual radii of the norm, made smaller or larger until PGD breaks some images and not all.

    Args:
        model: in eval mode with frozen parameters.
        pixels: images in [0, 1]; the first ones that the model knows are tried.
        labels: their classes.
        settings: of the attacks.
    """
    radii = DEFAULT_EPS[settings.norm]
    with torch.no_grad():
        logits = torch.cat([model(part) for part in pixels.split(settings.batch_size)])
    known = (logits.argmax(1) == labels).nonzero().flatten()[:TRIED]
    if len(known) == 0:
        return radii
    seeds = image_seeds(known, settings.seed, "grid")
    for _ in range(ROUNDS):
        shares = []
        for eps in radii:
            outcome = run_stream(
                model, Pgd(eps, settings.norm, STEPS), pixels[known], labels[known], logits[known], seeds,
                batch_size=settings.batch_size,
            )  # fmt: skip
            shares.append(1 - float(outcome.broken.float().mean()))
        if any(FLOOR < share < CEILING for share in shares):
            return radii
        if shares[0] <= FLOOR:
            radii = tuple(eps / SMALLER for eps in radii)
        elif shares[-1] >= CEILING:
            if settings.norm == "linf" and LARGER * radii[-1] > 1:
                return radii
            radii = tuple(LARGER * eps for eps in radii)
        else:  # all or nothing from one radius to the next
            place = next(index for index, share in enumerate(shares) if share <= FLOOR)
            low, high = radii[place - 1], radii[place]
            radii = tuple(low * (high / low) ** (part / 4) for part in (1, 2, 3))
    return radii
