"""What the figures say of a fine-tuning, and which of its settings mattered."""

from collections.abc import Iterator, Mapping
from typing import Any

from lrcompress.perturb import format_radius
from lrcompress.report.words import NORM_SIGNS, points


def tuning_sentences(tuning: Mapping[str, Any], removed: float) -> list[str]:
    """Returns whether what was asked of a fine-tuning was reached, with the figures, and what those are not.

    Args:
        tuning: of the recipe; of older versions of this program it has fewer figures.
        removed: share of the whole model's parameters that is gone.
    """
    return [*_drop(tuning, removed), *_kappa(tuning), *_robust(tuning)]


def effective_settings(tuning: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a fine-tuning without those of what was switched off."""
    idle = set(_idle(tuning))
    return {key: value for key, value in tuning.items() if key not in idle}


def augmentation_settings(tuning: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was done to the training images, without what was switched off."""
    values = tuning.get("augmentation", {})
    scale = values.get("crop_scale")
    shown = {"crop_scale": f"{scale[0]:g} to {scale[1]:g}"} if scale else {"crop": values.get("crop")}
    return {name: value for name, value in {**values, **shown}.items() if value and (name != "crop" or not scale)}


def _drop(tuning: Mapping[str, Any], removed: float) -> list[str]:
    if not _has(tuning, "target_reached", "max_drop", "held_out_images"):
        return []
    kept = "was kept" if tuning["target_reached"] else "WAS NOT KEPT"
    held_out = f"{tuning['held_out_images']:,} images held out of training"
    figures = ""
    if _has(tuning, "held_out_accuracy_uncompressed", "held_out_accuracy"):
        before, after = tuning["held_out_accuracy_uncompressed"], tuning["held_out_accuracy"]
        figures = (
            f": {100 * before:.2f} → {100 * after:.2f} %, {points(after - before, 2)}, with "
            f"{100 * (1 - removed):.1f} % of the parameters"
        )
    return [f"The largest drop asked for, {tuning['max_drop']:g} points, {kept} on {held_out}{figures}."]


def _kappa(tuning: Mapping[str, Any]) -> list[str]:
    if not _has(tuning, "largest_kappa") or not (tuning.get("beta") or _has(tuning, "max_kappa")):
        return []
    asked, largest = tuning.get("max_kappa"), tuning["largest_kappa"]
    kappa = largest["kappa"]
    found = f"The largest κ of a core is {'∞' if kappa is None else f'{kappa:.4g}'} (`{largest['layer']}`)"
    if asked is None:
        return [f"{found}, with β = {tuning['beta']:g}."]
    reached = kappa is not None and kappa <= asked
    outcome = "is reached" if reached else "is NOT REACHED: more --epochs or a higher --lr condition further"
    return [f"{found}; at most {asked:g} was asked for, and {outcome}."]


def _robust(tuning: Mapping[str, Any]) -> list[str]:
    accuracies = ("held_out_robust_accuracy_before", "held_out_robust_accuracy")
    if not _has(tuning, *accuracies, "attacked_images", "adversarial", "adversarial_norm", "adversarial_eps"):
        return []
    before, after = (tuning[name] for name in accuracies)
    norm, eps = tuning["adversarial_norm"], tuning["adversarial_eps"]
    return [
        f"Against the training's own adversary ({tuning['adversarial']}, {NORM_SIGNS[norm]} "
        f"ε = {format_radius(eps, norm)}) "
        f"{100 * before:.2f} % of {tuning['attacked_images']:,} held-out images were right before training and "
        f"{100 * after:.2f} % after it: no evidence of robustness, run `lrcompress attack`."
    ]


def _has(tuning: Mapping[str, Any], *names: str) -> bool:
    return all(tuning.get(name) is not None for name in names)


def _idle(tuning: Mapping[str, Any]) -> Iterator[str]:
    """Yields the settings that did nothing beside the others."""
    adversarial = tuning.get("adversarial")
    if adversarial is None:
        yield from ("adversarial_eps", "adversarial_norm", "adversarial_steps", "adversarial_share", "trades")
    elif adversarial != "pgd":
        yield "adversarial_steps"
    if not tuning.get("trades"):
        yield "trades"
    if not tuning.get("distill"):
        yield "temperature"
    if tuning.get("distill") == 1:
        yield "label_smoothing"
    if tuning.get("optimizer") == "adamw":
        yield "momentum"
    elif tuning.get("moments") != "reset":  # the other ways are of AdamW's second moment
        yield "moments"
    if tuning.get("max_kappa") is not None:
        yield from () if tuning.get("beta") else ("beta",)  # each layer has one of its own
    elif not tuning.get("beta"):
        yield from ("penalty", "penalty_core", "penalty_unfolding")
    if tuning.get("anneal") == 1:
        yield "anneal"
