"""Doubts about the figures, found in the figures themselves."""

from collections.abc import Sequence

from lrcompress.robustness.evaluation import Finding, ModelOutcome

FEW_IMAGES = 300


def find_doubts(models: Sequence[ModelOutcome]) -> tuple[Finding, ...]:
    """Returns the reasons to doubt the figures, for all models.

    Unreliable: a weaker attack breaks an image that PGD does not. Inconclusive: few images, or all models at the floor.
    """
    findings: list[Finding] = []
    images = len(models[0].clean)
    if images < FEW_IMAGES:
        findings.append(
            Finding(
                "inconclusive", f"{images} images give wide intervals; a one-point claim needs {FEW_IMAGES} or more"
            )
        )
    for model in models:
        findings += _weaker_beats_pgd(model)
    if not any(models[0].clean):
        message = "the first model answers no image rightly even without an attack: weights, data or preprocessing?"
        findings.append(Finding("inconclusive", message))
    elif models[0].attacks:
        findings += _all_at_the_floor(models)
    return tuple(findings)


def _weaker_beats_pgd(model: ModelOutcome) -> list[Finding]:
    names = {outcome.attack for outcome in model.attacks}
    if "pgd" not in names:
        return []
    pgd = model.outcome("pgd")
    findings = []
    for name in sorted(names & {"noise", "fgsm"}):
        weaker = model.outcome(name)
        count = sum(
            any(strong[image] and not weak[image] for strong, weak in zip(pgd.robust, weaker.robust, strict=True))
            for image in range(len(model.clean))
        )
        if count:
            findings.append(
                Finding(
                    "unreliable",
                    f"{name} breaks {count} images of the {model.role} model that PGD does not: "
                    "PGD is too weak, robustness is overestimated",
                )
            )
    return findings


def _all_at_the_floor(models: Sequence[ModelOutcome]) -> list[Finding]:
    """A comparison of 0 with 0 says nothing: at some radius some model must still be right somewhere."""
    radii = models[0].outcome("worst").eps
    first = next((index for index, eps in enumerate(radii) if eps > 0), None)
    if first is not None and all(not any(model.outcome("worst").robust[first]) for model in models):
        eps = radii[first]
        return [Finding("inconclusive", f"every model is at 0 % already at ε = {eps:.4g}; give a smaller --eps")]
    return []
