"""Exact one-sided bounds of shares and of paired differences of shares: what gates decide by."""

import math

# Of the error probability, this part goes to the share of flipped images, the rest to which way they flipped.
NUISANCE_PART = 0.1
NUISANCE_STEPS = 24
RESOLUTION = 1e-5
# Further from the mean than this many standard deviations a binomial has no weight that could move a bound.
WINDOW = 10


def share_bounds(successes: int, count: int, *, confidence: float) -> tuple[float, float]:
    """Returns a lower and an upper bound of a share, each of which holds with the confidence by itself.

    Source: C. J. Clopper and E. S. Pearson 1934, one-sided, through SciPy's `binomtest`.
    """
    from scipy.stats import binomtest

    low = binomtest(successes, count, alternative="greater").proportion_ci(confidence, method="exact").low
    high = binomtest(successes, count, alternative="less").proportion_ci(confidence, method="exact").high
    return float(low), float(high)


def drop_bounds(lost: int, gained: int, count: int, *, confidence: float) -> tuple[float, float]:
    """Returns a lower and an upper bound of a drop of accuracy, each of which holds with the confidence by itself.

    The drop is the share of images that were right before and wrong after, minus the share for which it is the other
    way round. All images count, so that many flips in both directions make the bounds wide.

    Source: R. L. Berger and D. D. Boos 1994: the p-value of lost − gained, maximised over the share of flipped images
    (on a grid) within its Clopper-Pearson bound, whose error probability is added. See Note [Bound of a drop].

    Args:
        lost: images that only the first model gets right.
        gained: images that only the second model gets right.
        count: all images.
        confidence: of each bound.
    """
    return -_largest_drop(gained, lost, count, confidence), _largest_drop(lost, gained, count, confidence)


# Note [Bound of a drop]
# An image is lost with probability p, gained with q, else unchanged. A drop d = p − q does not say how often images
# flip, s = p + q, which decides how much lost − gained varies. The flips m are binomial in s, and of m flips the lost
# ones are binomial in (1 + d/s)/2, so P(lost − gained ≤ t) is a sum over m. The bound is the d at which it falls to the
# error probability for every s that the flips seen allow. No flip among n images still allows some: a bound of one
# point takes about 410 images at 95 %, where the bare share of lost images would take 299.


def _largest_drop(lost: int, gained: int, count: int, confidence: float) -> float:
    """Returns the upper bound: the smallest drop that is refuted, to the resolution."""
    error = 1 - confidence
    flips = share_bounds(lost + gained, count, confidence=1 - NUISANCE_PART * error)[1]
    low, high = (lost - gained) / count, flips
    while high - low > RESOLUTION:
        drop = (low + high) / 2
        refuted = _probability_of_less(lost - gained, count, drop, flips) <= (1 - NUISANCE_PART) * error
        low, high = (low, drop) if refuted else (drop, high)
    return high


def _probability_of_less(difference: int, count: int, drop: float, most_flips: float) -> float:
    """Returns the largest P(lost − gained ≤ difference) over the shares of flips that are possible with the drop."""
    least = max(abs(drop), 1 / (1000 * count))
    step = (max(most_flips, least) - least) / (NUISANCE_STEPS - 1)
    return max(_cumulative(difference, count, drop, least + index * step) for index in range(NUISANCE_STEPS))


def _cumulative(difference: int, count: int, drop: float, flips: float) -> float:
    import numpy as np
    from scipy.stats import binom

    flips = min(flips, 1.0)
    reach = WINDOW * math.sqrt(count * flips * (1 - flips)) + WINDOW
    flipped = np.arange(max(0, math.floor(count * flips - reach)), min(count, math.ceil(count * flips + reach)) + 1)
    lost = binom.cdf((flipped + difference) // 2, flipped, min(1.0, (1 + drop / flips) / 2))
    return float(binom.pmf(flipped, count, flips) @ lost)
