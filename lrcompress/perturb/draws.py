"""Random numbers that depend on an image's own seed and nothing else: not on its batch, the device or the order.

# Note [Counters instead of generators]
A generator gives the next number, so what an image gets depends on who was served before it. Here a number is a hash of
(seed, position): splitmix64, whose 64-bit arithmetic is the same on all devices. Two models attacked on the same image
meet the same numbers, however many other images are left in the batch.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # as signed 64-bit numbers
_BITS = 24  # of a float32 mantissa


def uniform(seeds: Int[Tensor, "n"], count: int, *, stream: Int[Tensor, "n"] | int = 0) -> Float[Tensor, "n count"]:
    """Returns numbers in [0, 1), `count` of them for each seed.

    Args:
        seeds: one 64-bit seed per image.
        count: numbers per image.
        stream: different numbers for the same seeds: the number of a step, say, per image or for all.

    Source: Steele, Lea, Flood 2014, Fast splittable pseudorandom number generators (splitmix64).
    """
    base = _mix(seeds + _GOLDEN * (1 + torch.as_tensor(stream, device=seeds.device)))
    counters = torch.arange(1, count + 1, device=seeds.device)
    bits = _mix(base[:, None] + _GOLDEN * counters)
    return _shifted(bits, 64 - _BITS).to(torch.float32) / 2**_BITS


def normal(seeds: Int[Tensor, "n"], count: int, *, stream: Int[Tensor, "n"] | int = 0) -> Float[Tensor, "n count"]:
    """Returns standard normal numbers, `count` of them for each seed; see `uniform`.

    Source: Box, Muller 1958.
    """
    drawn = uniform(seeds, 2 * count, stream=stream)
    radius = (-2 * torch.log1p(-drawn[:, :count])).sqrt()
    return radius * torch.cos(2 * math.pi * drawn[:, count:])


def _mix(bits: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Int[Tensor, "*n"], count: int) -> Int[Tensor, "*n"]:
    """Returns the bits shifted to the right, zeros from the left: torch's own shift repeats the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
