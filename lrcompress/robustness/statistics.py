"""Intervals and paired tests for shares of images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class McNemar:
    """A paired comparison of two models on the same images.

    Attributes:
        lost: images that the first model gets right and the second wrong.
        gained: images that the first model gets wrong and the second right.
        p_value: of the exact two-sided McNemar test that both are equally likely.
        difference: share of right answers of the second model minus that of the first.
        interval: 95 % of that difference, for the sampling of images.
    """

    lost: int
    gained: int
    p_value: float
    difference: float
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as JSON types."""
        return asdict(self) | {"interval": list(self.interval)}


def wilson_interval(successes: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of a share.

    It covers the sampling of images only, neither the strength of an attack nor the seed of a training run.
    Source: E. B. Wilson 1927, through SciPy's `binomtest`.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def compare_paired(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Returns the flips between two models' outcomes on the same images, and what they say.

    Source: Q. McNemar 1947; the exact form is a binomial test of the flips. The interval is method 10 of R. G. Newcombe
    1998, Improved confidence intervals for the difference between binomial proportions based on paired data.
    """
    from scipy.stats import binomtest

    count = len(first)
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    both = sum(first) - lost
    p_value = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, p_value, (gained - lost) / count, _paired_interval(both, lost, gained, count))


def _paired_interval(both: int, lost: int, gained: int, count: int) -> tuple[float, float]:
    one, other = (both + lost) / count, (both + gained) / count
    (one_low, one_high), (low, high) = wilson_interval(both + lost, count), wilson_interval(both + gained, count)
    neither = count - both - lost - gained
    product = both * neither - lost * gained
    if product > 0:
        product = max(product - count / 2, 0)
    variances = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    correlation = product / variances**0.5 if variances else 0.0

    def width(down: float, up: float) -> float:
        return max(0.0, down**2 - 2 * correlation * down * up + up**2) ** 0.5

    difference = other - one
    return (
        max(-1.0, difference - width(other - low, one_high - one)),
        min(1.0, difference + width(one - one_low, high - other)),
    )
