"""Singular values of several matrices as one spectrum, and so few of them that a report has room."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Pairs (i, σ_i), i from 1.
Spectrum = tuple[tuple[int, float], ...]
MOST_VALUES = 32
DIGITS = 6


def merge_spectra(spectra: Sequence[Float[Tensor, "_"]]) -> Float[Tensor, "k"]:
    """Returns the singular values of some matrices together, in descending order."""
    return torch.cat(list(spectra)).sort(descending=True).values


def thin_spectrum(sigma: Float[Tensor, "k"]) -> Spectrum:
    """Returns at most 32 of the singular values as pairs (i, σ_i), i from 1, the values to six digits.

    All of them if there are no more; otherwise their numbers are evenly spaced on a logarithmic scale, as far as whole
    numbers can be, and the first and the last are always among them. None is an average: each is a singular value.

    Args:
        sigma: in descending order, at least one.
    """
    count, steps = len(sigma), MOST_VALUES - 1
    chosen = range(1, count + 1)
    if count > MOST_VALUES:
        chosen = sorted({round(count ** (step / steps)) for step in range(MOST_VALUES)})
    return tuple((i, float(f"{float(sigma[i - 1]):.{DIGITS}g}")) for i in chosen)
