"""The table of attacks and their settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata
from typing import Any

from lrcompress.errors import OptionError
from lrcompress.perturb import Norm

NORMS: tuple[Norm, ...] = ("linf", "l2")
DEFAULT_EPS: dict[Norm, tuple[float, ...]] = {
    "linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    "l2": (0.1, 0.25, 0.5, 1.0),
}


@dataclass(frozen=True)
class AttackKind:
    """One row of the table.

    Attributes:
        title: for people.
        foolbox: name of the class in foolbox, by norm.
        iterated: whether the number of steps applies.
        random: whether restarts differ.
    """

    title: str
    foolbox: dict[Norm, str]
    iterated: bool
    random: bool


# In order of their cost; the cheap ones are the sanity check of the expensive one.
ATTACKS: dict[str, AttackKind] = {
    "noise": AttackKind(
        "random noise",
        {"linf": "LinfAdditiveUniformNoiseAttack", "l2": "L2ClippingAwareAdditiveGaussianNoiseAttack"},
        iterated=False,
        random=True,
    ),
    "fgsm": AttackKind(
        "FGSM", {"linf": "LinfFastGradientAttack", "l2": "L2FastGradientAttack"}, iterated=False, random=False
    ),
    "pgd": AttackKind("PGD", {"linf": "LinfPGD", "l2": "L2PGD"}, iterated=True, random=True),
}


@dataclass(frozen=True)
class AttackSettings:
    """Which attacks, how strong, how long.

    Attributes:
        attacks: names from `ATTACKS`; none measures clean accuracy only.
        norm: "linf" or "l2".
        eps: radii in pixel units of [0, 1] images.
        steps: of iterated attacks.
        restarts: of attacks with a random start.
        batch_size: images at a time.
        seed: of random starts.

    Raises:
        OptionError: if a name is unknown or a value out of its range.
    """

    attacks: tuple[str, ...] = ()
    norm: Norm = "linf"
    eps: tuple[float, ...] = ()
    steps: int = 20
    restarts: int = 1
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.attacks:
            if name not in ATTACKS:
                raise OptionError(f"no attack named `{name}`", hint=f"known are: {', '.join(ATTACKS)}")
        parse_norm(self.norm)
        if self.steps < 1:
            raise OptionError(f"--steps must be at least 1, got {self.steps}", hint="--steps 20")
        if self.restarts < 1:
            raise OptionError(f"--restarts must be at least 1, got {self.restarts}", hint="--restarts 1")
        if self.attacks and not self.eps:
            object.__setattr__(self, "eps", DEFAULT_EPS[self.norm])
        object.__setattr__(self, "eps", tuple(sorted(set(self.eps))))
        for eps in self.eps:
            _check_eps(eps, self.norm)

    def describe(self) -> dict[str, Any]:
        """Returns the settings as the report shows them."""
        if not self.attacks:
            return {"attacks": [], "batch_size": self.batch_size}
        return {
            "engine": f"foolbox {metadata.version('foolbox')}",
            "attacks": list(self.attacks),
            "batch_size": self.batch_size,
            "eps": list(self.eps),
            "steps": self.steps,
            "restarts": self.restarts,
            "rel_stepsize": relative_stepsize(self.steps),
            "random_start": True,
        }


def relative_stepsize(steps: int) -> float:
    """Returns the step of PGD relative to ε: 2.5/steps lets it cross the ball, foolbox's default hardly leaves it."""
    return min(1.0, 2.5 / steps)


def parse_norm(text: str) -> Norm:
    """Returns the norm a user wrote.

    Raises:
        OptionError: if it is none of "linf" and "l2".
    """
    for norm in NORMS:
        if norm == text:
            return norm
    raise OptionError(f"--norm must be one of {', '.join(NORMS)}, got {text}", hint="--norm linf")


def parse_eps(texts: Sequence[str], norm: Norm, *, option: str = "--eps") -> tuple[float, ...]:
    """Returns the radii a user wrote: `8/255,4/255`, `0.03` or `0`, in pixel units.

    Args:
        texts: what was written.
        norm: of the ball.
        option: what errors call it.

    Raises:
        OptionError: if a text is no number or a radius makes no sense for images in [0, 1].
    """
    radii = []
    for text in (part.strip() for joined in texts for part in joined.split(",")):
        try:
            eps = float(Fraction(text))
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise OptionError(
                f"{option} must be numbers like 8/255 or 0.03, got `{text}`", hint=f"{option} 8/255"
            ) from error
        _check_eps(eps, norm, option)
        radii.append(eps)
    return tuple(radii)


def _check_eps(eps: float, norm: Norm, option: str = "--eps") -> None:
    if not math.isfinite(eps) or eps < 0:
        raise OptionError(f"{option} must be 0 or more, got {eps:g}", hint=f"{option} 8/255")
    if norm == "linf" and eps > 1:
        raise OptionError(
            f"{option} is in units of images in [0, 1], got {eps:g}", hint=f"did you mean {option} {eps:g}/255?"
        )
