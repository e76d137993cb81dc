"""Doubts about the figures, found in the figures themselves."""

from collections.abc import Sequence

from lrcompress.robustness.evaluation import Finding, ModelOutcome

FEW_IMAGES = 300
# A ball of this radius holds images that are grey all over, and those tell nothing.
BLIND_RADIUS = 0.5
STRONG = ("pgd", "apgd-ce", "apgd-dlr", "apgd-t")
# What must not break an image that the strong attacks do not, and what it means if it does.
WEAKER = {
    "noise": "they are too weak, robustness is overestimated",
    "fgsm": "they are too weak, robustness is overestimated",
    "square": "it uses no gradients, so those the others follow mislead them, robustness is overestimated",
}
NAMES = {"pgd": "PGD", "apgd-ce": "APGD-CE", "apgd-dlr": "APGD-DLR", "apgd-t": "targeted APGD-DLR"}


def find_doubts(models: Sequence[ModelOutcome]) -> tuple[Finding, ...]:
    """Returns the reasons to doubt the figures, for all models.

    Unreliable: an attack breaks an image that stronger ones do not, or images withstand that nothing is left of.
    Inconclusive: few images, or all models at the floor.
    """
    findings: list[Finding] = []
    images = len(models[0].clean)
    if images < FEW_IMAGES:
        message = f"{images} images give wide intervals; a one-point claim needs {FEW_IMAGES} or more"
        findings.append(Finding("inconclusive", message, "few-images"))
    for model in models:
        findings += [*_weaker_beats_stronger(model), *_withstands_everything(model)]
    if not any(models[0].clean):
        message = "the first model answers no image rightly even without an attack: weights, data or preprocessing?"
        findings.append(Finding("inconclusive", message, "floor"))
    elif models[0].attacks:
        findings += _all_at_the_floor(models)
    return tuple(findings)


def _weaker_beats_stronger(model: ModelOutcome) -> list[Finding]:
    outcomes = {outcome.attack: outcome for outcome in model.attacks}
    strong = [name for name in STRONG if name in outcomes]
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
        if count:
            names = " and ".join(NAMES[other] for other in strong)
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


def _withstands_everything(model: ModelOutcome) -> list[Finding]:
    """No network recognises what is grey all over: who withstands that hides its gradients."""
    if not model.attacks:
        return []
    worst = model.outcome("worst")
    standing = next((bits for eps, bits in zip(worst.eps, worst.robust, strict=True) if eps >= BLIND_RADIUS), ())
    if not standing or 2 * sum(standing) <= len(standing):
        return []
    message = f"the {model.role} model withstands ε ≥ {BLIND_RADIUS} on {sum(standing)} images: its gradients mislead"
    return [Finding("unreliable", message, "large-radius", model.role)]


def _all_at_the_floor(models: Sequence[ModelOutcome]) -> list[Finding]:
    """A comparison of 0 with 0 says nothing: at some radius some model must still be right somewhere."""
    radii = models[0].outcome("worst").eps
    first = next((index for index, eps in enumerate(radii) if eps > 0), None)
    if first is not None and all(not any(model.outcome("worst").robust[first]) for model in models):
        message = f"every model is at 0 % already at ε = {radii[first]:.4g}; give a smaller --eps"
        return [Finding("inconclusive", message, "floor")]
    return []
