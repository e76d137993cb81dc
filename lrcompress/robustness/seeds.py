"""Seeds that belong to an image and a purpose."""

import zlib

from jaxtyping import Int
from torch import Tensor


def image_seeds(numbers: Int[Tensor, "n"], *parts: int | str) -> Int[Tensor, "n"]:
    """Returns a seed for each image, by its number and what it is for; the same in every process, unlike `hash`."""
    return (numbers << 32) + zlib.crc32(repr(parts).encode())
