"""Random numbers that depend on what they are for, and on nothing that was drawn before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lrcompress.data.augment import Augmentation

PURPOSES = ("order", "shifts", "mirrored", "image", "batch")
Purpose = Literal["order", "shifts", "mirrored", "image", "batch"]


def seed_of(purpose: Purpose, *, seed: int, epoch: int, number: int = 0) -> np.random.SeedSequence:
    """Returns the source of the random numbers for one purpose.

    Args:
        purpose: what the numbers are for; two purposes have independent numbers.
        seed: of the run.
        epoch: at least 0.
        number: of the image in the epoch's order, or of the batch.
    """
    # As torch does with a negative seed.
    return np.random.SeedSequence([seed % 2**64, epoch], spawn_key=(PURPOSES.index(purpose), number))


@dataclass(frozen=True)
class EpochDraws:
    """What is drawn for all images of an epoch at once, by their position in its order.

    Attributes:
        order: index of the image at each position.
        shifts: top and left of the cut in the padded image.
        mirrored: whether the image is mirrored.
    """

    order: Int[Tensor, "n"]
    shifts: Int[Tensor, "n 2"]
    mirrored: Bool[Tensor, "n"]


def draw_epoch(count: int, augmentation: Augmentation, *, seed: int, epoch: int) -> EpochDraws:
    """Returns order, shifts and mirrorings for `count` images."""
    order, shifts, mirrored = (
        np.random.default_rng(seed_of(purpose, seed=seed, epoch=epoch)) for purpose in ("order", "shifts", "mirrored")
    )
    return EpochDraws(
        torch.from_numpy(order.permutation(count)),
        torch.from_numpy(shifts.integers(0, 2 * augmentation.padding + 1, (count, 2))),
        torch.from_numpy((mirrored.random(count) < 0.5) & augmentation.flip),
    )


def seed_globally_(source: np.random.SeedSequence) -> None:
    """Seeds the global generators of Python, numpy and torch (CPU), from which timm's augmentation draws."""
    # Three seeds: from one and the same, Python's and numpy's generators may give the same numbers.
    for_python, for_numpy, for_torch = source.generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    # Not torch.manual_seed, which seeds the accelerators too.
    torch.default_generator.manual_seed(for_torch)


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Leaves the global generators of Python, numpy and torch (CPU) as they were before."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
