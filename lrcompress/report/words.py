"""How documents write figures."""

from collections.abc import Mapping
from typing import Any

from lrcompress.perturb import format_radius

NORM_SIGNS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}


def points(share: float, digits: int = 1) -> str:
    """Returns a difference of shares in points, with its sign; nothing is +0.0.

    >>> points(-0.0123), points(-0.0001), points(-0.0001, 2)
    ('-1.2 points', '+0.0 points', '-0.01 points')
    """
    return f"{round(100 * share, digits) + 0.0:+.{digits}f} points"  # never -0.0


def paper_scales(settings: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """Returns the attacks of an evaluation whose ε is not one of pixels, by name: pixels at ε = 1, by model."""
    return settings.get("paper", {}).get("pixels_per_unit", {})


def counted_attacks(settings: Mapping[str, Any]) -> list[str]:
    """Returns the attacks of an evaluation whose worst case is told, those whose ε is one of pixels."""
    return [name for name in settings["attacks"] if name not in paper_scales(settings)]


def radius_of(attack: str, eps: float, evaluation: Mapping[str, Any]) -> str:
    """Returns a radius of an attack; of one whose ε is not one of pixels with the pixels that it is at most.

    >>> paper = {"pixels_per_unit": {"paper-jitter": {"baseline": 0.2, "compressed": 0.2}}}
    >>> radius_of("paper-jitter", 0.1, {"norm": "linf", "settings": {"paper": paper}})
    '0.1 (pixels ≤ 5.1/255)'
    """
    scales = paper_scales(evaluation["settings"]).get(attack)
    if scales is None:
        return format_radius(eps, evaluation["norm"])
    pixels = " or ".join(f"{255 * eps * scale:.3g}/255" for scale in sorted(set(scales.values())))
    return f"{eps:.4g} (pixels ≤ {pixels})"


def paper_sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """Returns what is to be known of attacks whose ε is not one of pixels."""
    names = list(paper_scales(evaluation["settings"]))
    if not names:
        return []
    unit, what = evaluation["settings"]["paper"]["unit"], "these attacks are" if len(names) > 1 else "this attack is"
    return [f"The ε of {', '.join(names)} is {unit}; {what} no part of the worst case."]
