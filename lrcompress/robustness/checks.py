"""Doubts about the figures, found in the figures themselves."""

from collections.abc import Mapping, Sequence

from lrcompress.perturb import Norm, format_radius
from lrcompress.robustness.attacks import find_attack
from lrcompress.robustness.evaluation import Finding, ModelOutcome

FEW_IMAGES = 300
# What must not break an image that the other attacks do not, and what it means if it does.
WEAKER = {
    "noise": "they are too weak, robustness is overestimated",
    "fgsm": "they are too weak, robustness is overestimated",
    "square": "it uses no gradients, so those the others follow mislead them, robustness is overestimated",
}
# Of all images, not only of those that are looked at, a share that a weaker attack may break beyond the stronger ones:
# these have random starts and end somewhere. It is no sign of gradients that mislead, which leave far more.
TOLERATED = 0.005
CHANCE = 0.05  # p-value above which something may be chance


def tolerated(images: int) -> int:
    """Returns how many of some images may differ without a doubt: more show that of all images more do than tolerated.

    One-sided binomial test at 5 %; one image is tolerated in any case.
    """
    from scipy.stats import binom

    return max(1, int(binom.ppf(1 - CHANCE, images, TOLERATED)))


def find_doubts(
    models: Sequence[ModelOutcome],
    *,
    classes: int,
    norm: Norm,
    transferred: Mapping[str, Sequence[Sequence[bool]]] | None = None,
) -> tuple[Finding, ...]:
    """Returns the reasons to doubt the figures, for all models.

    Unreliable: an attack, or images made against the other model, break what stronger ones do not, or gradients are
    zero. Inconclusive: few images, guesses, or all models at the floor.

    Args:
        models: the outcomes.
        classes: of the models.
        norm: of the balls.
        transferred: by "source→target", for each radius and image, whether the target was right.
    """
    findings: list[Finding] = []
    images = len(models[0].clean)
    if images < FEW_IMAGES:
        message = f"{images} images give wide intervals: {FEW_IMAGES} are few, and a gate of one point takes about 410"
        findings.append(Finding("inconclusive", message, "few-images"))
    if images < classes:
        message = f"{images} images of {classes:,} classes: most classes are hardly tried, or not at all"
        findings.append(Finding("inconclusive", message, "few-images"))
    for model in models:
        findings += [
            *_weaker_beats_stronger(model),
            *_transfer_beats_white_box(model, transferred or {}),
            *_without_gradient(model),
            *_guesses(model, classes),
        ]
    if any(models[0].clean):
        findings += _all_at_the_floor(models, norm)
    return tuple(findings)


def _guesses(model: ModelOutcome, classes: int) -> list[Finding]:
    from scipy.stats import binomtest

    right, images = sum(model.clean), len(model.clean)
    if binomtest(right, images, 1 / classes, alternative="greater").pvalue <= CHANCE:
        return []
    message = (
        f"the {model.role} model answers {right} of {images} images rightly without an attack, no more than by "
        f"guessing among {classes} classes: weights, data or normalisation?"
    )
    return [Finding("inconclusive", message, "guesses", model.role)]


def _without_gradient(model: ModelOutcome) -> list[Finding]:
    findings = []
    for name, count in model.silent.items():
        if count > tolerated(len(model.clean)):
            message = (
                f"the gradient of the {model.role} model is zero at {count} images that withstand "
                f"{find_attack(name).title}: there was nothing to follow"
            )
            findings.append(Finding("unreliable", message, "zero-gradients", model.role))
    return findings


def _transfer_beats_white_box(
    model: ModelOutcome, transferred: Mapping[str, Sequence[Sequence[bool]]]
) -> list[Finding]:
    findings = []
    for pair, rows in transferred.items():
        source, _, target = pair.partition("→")
        if target != model.role or source == target:
            continue
        own = model.outcome("worst").robust
        count = max(
            sum(stands and not right for stands, right in zip(mine, theirs, strict=True))
            for mine, theirs in zip(own, rows, strict=True)
        )
        if count > tolerated(len(model.clean)):
            message = (
                f"what was made against the {source} model breaks {count} images of the {model.role} model that its "
                "own attacks do not: they are too weak (more --steps or --restarts), or its gradients mislead"
            )
            findings.append(Finding("unreliable", message, "transfer-beats-white-box", model.role))
    return findings


def _weaker_beats_stronger(model: ModelOutcome) -> list[Finding]:
    outcomes = {outcome.attack: outcome for outcome in model.attacks}
    strong = [name for name in outcomes if name not in (*WEAKER, "worst") and find_attack(name).paper is None]
    if not strong:
        return []
    findings = []
    for name, meaning in WEAKER.items():
        if name not in outcomes:
            continue
        rows = [outcomes[name].robust, *(outcomes[other].robust for other in strong)]
        count = sum(
            any(not weak[image] and all(row[image] for row in others) for weak, *others in zip(*rows, strict=True))
            for image in range(len(model.clean))
        )
        if count > tolerated(len(model.clean)):
            names = " and ".join(find_attack(other).title for other in strong)
            verb = "does" if len(strong) == 1 else "do"
            meaning = meaning.replace("they are", f"{names} is") if len(strong) == 1 else meaning
            findings.append(
                Finding(
                    "unreliable",
                    f"{name} breaks {count} images of the {model.role} model that {names} {verb} not: {meaning}",
                    "weaker-beats-stronger",
                    model.role,
                )
            )
    return findings


def _all_at_the_floor(models: Sequence[ModelOutcome], norm: Norm) -> list[Finding]:
    """A comparison of 0 with 0 says nothing: at some radius some model must still be right somewhere."""
    worst = [one for one in (model.worst_case() for model in models) if one is not None]
    radii = worst[0].eps if worst else ()
    first = next((index for index, eps in enumerate(radii) if eps > 0), None)
    if first is not None and not any(any(one.robust[first]) for one in worst):
        message = f"every model is at 0 % already at ε = {format_radius(radii[first], norm)}; give a smaller --eps"
        return [Finding("inconclusive", message, "floor")]
    return []
