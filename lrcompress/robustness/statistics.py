"""Intervals and paired tests for shares of images."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class McNemar:
    """A paired comparison of two models on the same images.

    Attributes:
        lost: images that the first model gets right and the second wrong.
        gained: images that the first model gets wrong and the second right.
        p_value: of the exact two-sided McNemar test that both are equally likely.
    """

    lost: int
    gained: int
    p_value: float


def wilson_interval(successes: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of a share.

    It covers the sampling of images only, neither the strength of an attack nor the seed of a training run.
    Source: E. B. Wilson 1927, through SciPy's `binomtest`.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def compare_paired(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Returns the flips between two models' outcomes on the same images and the exact test of their symmetry.

    Source: Q. McNemar 1947; the exact form is a binomial test of the flips.
    """
    from scipy.stats import binomtest

    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    p_value = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, p_value)
