"""The table of attacks and their settings."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import metadata
from typing import Any

from torch import nn

from lrcompress.errors import OptionError
from lrcompress.perturb import Norm
from lrcompress.robustness.apgd import Apgd, ApgdDlr, ApgdTargeted
from lrcompress.robustness.autoattack import PACKAGE, require_autoattack
from lrcompress.robustness.corruptions import SEVERITIES
from lrcompress.robustness.iterated import IteratedAttack
from lrcompress.robustness.paper import PaperAttack, PaperJitter, PaperL1Fgsm, PaperL2Fgsm, PaperMixup
from lrcompress.robustness.pgd import Fgsm, Noise, Pgd, relative_stepsize
from lrcompress.robustness.smoothing import ALPHA, Smoothing
from lrcompress.robustness.square import L2Square, LinfSquare, Square

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
DEFAULT_EPS: dict[Norm, tuple[float, ...]] = {
    "linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    "l2": (0.1, 0.25, 0.5, 1.0),
    "l1": (1.0, 2.0, 5.0, 10.0),
}
TARGETS = 9  # of targeted APGD, as in AutoAttack


@dataclass(frozen=True)
class AttackKind:
    """One row of the table.

    Attributes:
        title: for people.
        norms: of the balls it works in.
        make: builds it for a ball and the number of a run; None for those of other packages and of the paper.
        runs: how often each image is attacked, each time otherwise.
        classes: the smallest number of classes it makes sense for.
        foolbox: name of foolbox's class by norm, of attacks that are taken from there.
        options: of foolbox's class.
        package: of another attack in balls that is not taken from foolbox.
        paper: one whose ε is not one of pixels, so that it is no part of the worst case.
        uses: settings beside the radii that its strength depends on, of those that reports tell.
    """

    title: str
    norms: tuple[Norm, ...]
    make: "Callable[[AttackSettings, float, int], IteratedAttack] | None" = None
    runs: "Callable[[AttackSettings, int], int]" = lambda settings, classes: 1
    classes: int = 2
    foolbox: Mapping[Norm, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    package: str | None = None
    paper: type[PaperAttack] | None = None
    uses: tuple[str, ...] = ()

    def build(self, settings: "AttackSettings", eps: float, run: int, model: nn.Module) -> IteratedAttack | None:
        """Returns the attack on a model within one radius; None of those of other packages."""
        if self.paper is not None:
            return self.paper(eps, model)
        return None if self.make is None else self.make(settings, eps, run)


def _restarts(settings: "AttackSettings", classes: int) -> int:
    return settings.restarts


def _targets(settings: "AttackSettings", classes: int) -> int:
    return min(TARGETS, classes - 1)


def _square(settings: "AttackSettings", eps: float, run: int) -> Square:
    kind = LinfSquare if settings.norm == "linf" else L2Square
    return kind(eps, settings.norm, settings.queries)


ITERATED = ("steps", "restarts")
# In order of their cost; the cheap ones are the sanity check of the expensive one.
ATTACKS: dict[str, AttackKind] = {
    "noise": AttackKind("random noise", NORMS, lambda s, eps, run: Noise(eps, s.norm), _restarts, uses=("restarts",)),
    "fgsm": AttackKind("FGSM", NORMS, lambda s, eps, run: Fgsm(eps, s.norm)),
    "pgd": AttackKind(
        "PGD", NORMS, lambda s, eps, run: Pgd(eps, s.norm, s.steps), _restarts, uses=(*ITERATED, "rel_stepsize")
    ),
    "apgd-ce": AttackKind("APGD-CE", NORMS, lambda s, eps, run: Apgd(eps, s.norm, s.steps), _restarts, uses=ITERATED),
    "apgd-dlr": AttackKind(
        "APGD-DLR", NORMS, lambda s, eps, run: ApgdDlr(eps, s.norm, s.steps), _restarts, classes=3, uses=ITERATED
    ),
    "apgd-t": AttackKind(
        "targeted APGD-DLR",
        NORMS,
        lambda s, eps, run: ApgdTargeted(eps, s.norm, s.steps, rank=run + 1),
        _targets,
        classes=4,
        uses=("steps",),
    ),
    "square": AttackKind("Square", ("linf", "l2"), _square, uses=("queries",)),
    "deepfool": AttackKind(
        "DeepFool",
        ("linf", "l2"),
        foolbox={"linf": "LinfDeepFoolAttack", "l2": "L2DeepFoolAttack"},
        uses=("foolbox",),
    ),
    "fmn": AttackKind(
        "FMN",
        NORMS,
        foolbox={"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack"},
        uses=("foolbox",),
    ),
    "ddn": AttackKind("DDN", ("l2",), foolbox={"l2": "DDNAttack"}, uses=("foolbox",)),
    "cw": AttackKind("Carlini-Wagner", ("l2",), foolbox={"l2": "L2CarliniWagnerAttack"}, uses=("foolbox",)),
    "autoattack": AttackKind("AutoAttack", NORMS, classes=TARGETS + 1, package=PACKAGE, uses=("autoattack",)),
    # Where they move pixels is bounded in ℓ∞, whatever their names say.
    "paper-l2fgsm": AttackKind("the paper's ℓ2-FGSM, its own ε", ("linf",), paper=PaperL2Fgsm),
    "paper-l1fgsm": AttackKind("the paper's ℓ1-FGSM, its own ε", ("linf",), paper=PaperL1Fgsm),
    "paper-jitter": AttackKind("the paper's Jitter, its own ε", ("linf",), paper=PaperJitter),
    "paper-mixup": AttackKind("the paper's Mixup, its own ε", ("linf",), paper=PaperMixup),
}
# What `--suite` stands for; attacks that do not work in the norm or for so few classes are left out.
SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("noise", "fgsm", "pgd"),
    "standard": ("noise", "fgsm", "pgd", "apgd-ce", "apgd-dlr"),
    "full": ("noise", "fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square", "deepfool", "fmn"),
    "paper": ("paper-l2fgsm", "paper-l1fgsm", "paper-jitter", "paper-mixup"),
}


def find_attack(name: str) -> AttackKind:
    """Returns a row of the table, or one for an attack of foolbox: its class, and `:option=value,…` for its options.

    Raises:
        OptionError: if there is no such attack, or it does not have the options.
    """
    if name in ATTACKS:
        return ATTACKS[name]
    from lrcompress.robustness.foolbox_adapter import find_foolbox_attack, foolbox_attacks

    class_name, _, texts = name.partition(":")
    if class_name in foolbox_attacks():
        norm, options = find_foolbox_attack(class_name, texts)
        return AttackKind(class_name, (norm,), foolbox={norm: class_name}, options=options, uses=("foolbox",))
    near = difflib.get_close_matches(class_name, [*ATTACKS, *foolbox_attacks()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(ATTACKS)}, and foolbox's classes"
    if class_name in ATTACKS:
        hint = "only foolbox's classes take options: --attack L2FMNAttack:steps=200"
    raise OptionError(f"no attack named `{name}`", hint=hint)


@dataclass(frozen=True)
class AttackSettings:
    """Which attacks, how strong, how long.

    Attributes:
        attacks: names that `find_attack` knows; none measures clean accuracy only.
        norm: "linf", "l2" or "l1".
        eps: radii in pixel units of [0, 1] images, of the paper's attacks in their own; none are chosen when the
            models are there.
        eps_by_trial: whether they were.
        steps: of iterated attacks.
        restarts: of attacks with a random start.
        queries: of Square.
        batch_size: images at a time.
        seed: of random starts.
        corruptions: whether accuracy on corrupted images is measured too.
        smoothing: how the smoothed classifier is certified too; None not at all.

    Raises:
        OptionError: if a name is unknown or a value out of its range.
    """

    attacks: tuple[str, ...] = ()
    norm: Norm = "linf"
    eps: tuple[float, ...] = ()
    eps_by_trial: bool = False
    steps: int = 20
    restarts: int = 1
    queries: int = 1000
    batch_size: int = 128
    seed: int = 0
    corruptions: bool = False
    smoothing: Smoothing | None = None

    def __post_init__(self) -> None:
        parse_norm(self.norm)
        for name in self.attacks:
            norms = find_attack(name).norms
            if find_attack(name).package is not None:
                require_autoattack()
            if self.norm not in norms:
                raise OptionError(
                    f"{name} does not work in {self.norm}, but in {' and '.join(norms)}", hint=f"--norm {norms[0]}"
                )
        if self.steps < 1:
            raise OptionError(f"--steps must be at least 1, got {self.steps}", hint="--steps 20")
        if self.restarts < 1:
            raise OptionError(f"--restarts must be at least 1, got {self.restarts}", hint="--restarts 1")
        if self.queries < 1:
            raise OptionError(f"--queries must be at least 1, got {self.queries}", hint="--queries 1000")
        object.__setattr__(self, "eps", tuple(sorted(set(self.eps))))
        for eps in self.eps:
            _check_eps(eps, self.norm)

    def tasks(self) -> int:
        """Returns how many times each image is dealt with beside the clean pass."""
        return len(self.attacks) + self.corruptions + (self.smoothing is not None)

    def follows_gradients(self) -> bool:
        """Whether one of them follows gradients over several steps, so that its strength is worth a doubt."""
        return (
            any(one.foolbox or one.package for one in map(find_attack, self.attacks)) or self.transferred() is not None
        )

    def transferred(self) -> str | None:
        """Returns the attack whose images are shown to the other model too, the first that follows gradients."""
        found = [name for name in ("pgd", "apgd-ce", "apgd-dlr", "apgd-t") if name in self.attacks]
        return found[0] if found else None

    def of_paper(self) -> dict[str, type[PaperAttack]]:
        """Returns the attacks among them whose ε is not one of pixels, by name; they are no part of the worst case."""
        return {name: paper for name in self.attacks if (paper := find_attack(name).paper) is not None}

    def describe(self) -> dict[str, Any]:
        """Returns the settings as the report shows them."""
        others: dict[str, Any] = {"corruptions": list(SEVERITIES)} if self.corruptions else {}
        if self.smoothing is not None:
            others["smoothing"] = {"sigma": self.smoothing.sigma, "samples": self.smoothing.samples, "alpha": ALPHA}
        if not self.attacks:
            return {"attacks": [], "batch_size": self.batch_size, **others}
        from_foolbox = [name for name in self.attacks if find_attack(name).foolbox]
        engine = {"foolbox": f"{metadata.version('foolbox')} for {', '.join(from_foolbox)}"} if from_foolbox else {}
        if any(find_attack(name).package is not None for name in self.attacks):
            engine["autoattack"] = f"{PACKAGE} {require_autoattack()}, standard"
        square = {"queries": self.queries} if "square" in self.attacks else {}
        return {
            **engine,
            "attacks": list(self.attacks),
            "batch_size": self.batch_size,
            "eps": list(self.eps),
            "eps_by_trial": self.eps_by_trial,
            "steps": self.steps,
            "restarts": self.restarts,
            "rel_stepsize": relative_stepsize(self.steps),
            "random_start": True,
            **square,
            **others,
        }


def attack_strength(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those settings of a report that decide how strong one of its attacks was.

    Args:
        name: of the attack, one that `find_attack` knows.
        settings: as `AttackSettings.describe` returns them.

    Raises:
        OptionError: if the attack is unknown.
    """
    strength = {key: settings.get(key) for key in find_attack(name).uses}
    if strength.get("foolbox") is not None:  # its version, and then the attacks that are taken from there
        strength["foolbox"] = str(strength["foolbox"]).partition(" ")[0]
    return strength


def parse_norm(text: str) -> Norm:
    """Returns the norm a user wrote.

    Raises:
        OptionError: if it is none of "linf", "l2" and "l1".
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
    if norm == "linf" and eps >= 1:
        raise OptionError(
            f"{option} is in units of images in [0, 1], got {eps:g}", hint=f"did you mean {option} {eps:g}/255?"
        )
