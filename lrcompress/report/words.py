"""How documents write figures."""

NORM_SIGNS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}


def points(share: float, digits: int = 1) -> str:
    """Returns a difference of shares in points, with its sign; nothing is +0.0.

    >>> points(-0.0123), points(-0.0001), points(-0.0001, 2)
    ('-1.2 points', '+0.0 points', '-0.01 points')
    """
    return f"{round(100 * share, digits) + 0.0:+.{digits}f} points"  # never -0.0


def radius(eps: float, norm: str) -> str:
    """Returns a radius as people write it: 8/255 where it is one."""
    if norm == "linf" and abs(eps * 255 - round(eps * 255)) < 1e-6 and eps > 0:
        return f"{round(eps * 255)}/255"
    return f"{eps:.4g}"
