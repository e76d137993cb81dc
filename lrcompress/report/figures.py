"""Figures of a report by name: what gates and comparisons ask for."""

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lrcompress.errors import OptionError
from lrcompress.perturb import format_radius
from lrcompress.report.bounds import drop_bounds, share_bounds
from lrcompress.report.words import paper_scales

FIXED = ("clean.drop", "clean.accuracy", "size.parameters", "size.bytes", "size.macs", "latency.ratio")
EXAMPLES = ("pgd@4/255.drop", "pgd@4/255.accuracy", "worst@4/255.drop", "worst@4/255.accuracy")
NOTHING_ATTACKED = "no attack was run"
UNDER_ATTACK = re.compile(r"(?P<attack>[^@\s]+)@(?P<eps>[^@\s]+)\.(?P<key>drop|accuracy)")


@dataclass(frozen=True)
class FigureName:
    """A figure's name taken apart.

    Attributes:
        text: as it was written, `pgd@4/255.drop`.
        key: "drop", "accuracy", "parameters", "bytes", "macs" or "ratio".
        attack: an attack, "worst", or "" where none belongs to it.
        eps: the radius of the attack in pixel units, else 0.
    """

    text: str
    key: str
    attack: str = ""
    eps: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        value: points of a drop, % of a share or of what is kept of a size, a ratio of times.
        unit: "points", "%" or "" for a ratio.
        low: lower bound, which holds with the confidence by itself; the value where nothing is random.
        high: upper bound likewise.
        evidence: what was measured, in words.
        doubt: why a gate cannot be passed with it, "" if it can.
    """

    value: float
    unit: str
    low: float
    high: float
    evidence: str
    doubt: str = ""


@dataclass(frozen=True)
class Missing:
    """A figure that was not measured, and why."""

    reason: str


def parse_figure(text: str, *, attacks: Collection[str]) -> FigureName:
    """Returns the name of a figure taken apart.

    Args:
        text: as a user wrote it.
        attacks: names of attacks that are known, without "worst".

    Raises:
        OptionError: with the nearest names, if no figure can have this name.
    """
    if text in FIXED:
        return FigureName(text, text.partition(".")[2])
    found = UNDER_ATTACK.fullmatch(text)
    if found is None:
        raise OptionError(f"no figure is named `{text}`", hint=_nearest(text, [*FIXED, *EXAMPLES]))
    attack, known = found["attack"], ("worst", *attacks)
    if attack not in known:
        raise OptionError(f"no attack is named `{attack}` in the figure `{text}`", hint=_nearest(attack, known))
    try:
        eps = float(Fraction(found["eps"]))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        message = f"`{found['eps']}` in the figure `{text}` is no radius"
        raise OptionError(message, hint=f"a radius is a number like 4/255 or 0.5: {EXAMPLES[0]}") from error
    return FigureName(text, found["key"], attack, eps)


def _nearest(text: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


def find_figure(report: Mapping[str, Any], name: FigureName, *, confidence: float) -> Figure | Missing:
    """Returns a figure of a report, or why there is none.

    Where several evaluations have it, the one of the most images counts, of equals the latest.

    Args:
        report: a report or a comparison.
        name: of the figure.
        confidence: of each bound.
    """
    group = name.text.partition(".")[0]
    if group == "size":
        kept = 100 * report["size"]["compressed"][name.key] / report["size"]["baseline"][name.key]
        return Figure(kept, "%", kept, kept, "kept, counted")
    if group == "latency":
        return _latency(report["latency"])
    found = [_in_evaluation(evaluation, name, confidence) for evaluation in report["evaluations"]]
    figures = [
        (evaluation["images"], index, evaluation["norm"], figure)
        for index, (evaluation, figure) in enumerate(zip(report["evaluations"], found, strict=True))
        if isinstance(figure, Figure)
    ]
    if figures and name.attack and len(norms := sorted({norm for _, _, norm, _ in figures})) > 1:
        return Missing(f"it was measured in several norms, {' and '.join(norms)}, and the name does not say which")
    if figures:
        return max(figures, key=lambda one: one[:2])[3]
    reasons = [figure.reason for figure in found if isinstance(figure, Missing)]
    reasons = [reason for reason in reasons if reason != NOTHING_ATTACKED] or reasons
    return Missing("; ".join(dict.fromkeys(reasons)) or "nothing was evaluated")


def _latency(latency: Mapping[str, Any] | None) -> Figure | Missing:
    if latency is None:
        return Missing("the models were not timed")
    low, high = latency["ratio_quartiles"]
    evidence = f"middle half of {latency['rounds']} rounds, batch of {latency['batch_size']}, {latency['device']}"
    return Figure(latency["ratio"], "", low, high, evidence)


def _in_evaluation(evaluation: Mapping[str, Any], name: FigureName, confidence: float) -> Figure | Missing:
    void = [one["message"] for one in evaluation["findings"] if one["severity"] == "error"]
    if void:
        return Missing(f"the evaluation is void: {void[0]}")
    models = evaluation["models"]
    if not name.attack:
        rows = {role: model["clean"] for role, model in models.items()}
        pair = evaluation.get("paired", {}).get("clean")
    else:
        measured = models["compressed"]["attacks"].get(name.attack)
        if measured is None:
            others = ", ".join(models["compressed"]["attacks"])
            return Missing(f"{name.attack} was not measured, but {others}" if others else NOTHING_ATTACKED)
        at = [index for index, row in enumerate(measured) if same_radius(row["eps"], name.eps)]
        if not at:
            radii = ", ".join(format_radius(row["eps"], evaluation["norm"]) for row in measured)
            return Missing(f"{name.attack} was measured at ε = {radii}")
        rows = {role: model["attacks"][name.attack][at[0]] for role, model in models.items()}
        pair = evaluation.get("paired", {}).get("attacks", {}).get(name.attack, [])[at[0] : at[0] + 1]
        pair = pair[0] if pair else None
    return _accuracy(evaluation, name, rows, pair, confidence)


def _accuracy(
    evaluation: Mapping[str, Any],
    name: FigureName,
    rows: Mapping[str, Mapping[str, Any]],
    pair: Mapping[str, Any] | None,
    confidence: float,
) -> Figure | Missing:
    images, evidence = evaluation["images"], f"{evaluation['images']:,} images of {evaluation['data']}"
    evidence += ", the paper's ε, not comparable with ε in pixels" * (
        name.attack in paper_scales(evaluation["settings"])
    )
    # An original whose robustness is overestimated casts doubt on a drop, but not on the compressed model's accuracy.
    concerned = (None, "compressed") if name.key == "accuracy" else (None, "compressed", "baseline")
    findings = [one for one in evaluation["findings"] if one["model"] in concerned]
    weak = [one["message"] for one in findings if one["severity"] == "unreliable"]
    doubt = f"robustness may be overestimated: {weak[0]}" if weak and name.attack else ""
    # Of a network that guesses no figure means anything, clean or attacked.
    doubt = next((one["message"] for one in findings if one["check"] == "guesses"), doubt)
    if name.key == "accuracy":
        low, high = share_bounds(rows["compressed"]["correct"], images, confidence=confidence)
        return Figure(100 * rows["compressed"]["accuracy"], "%", 100 * low, 100 * high, evidence, doubt)
    if pair is None:
        apart = f": {evaluation['apart']}" if "apart" in evaluation else ""
        return Missing(f"there is no original, or no earlier model, to compare with on the same images{apart}")
    lost, gained = pair["lost"], pair["gained"]
    low, high = drop_bounds(lost, gained, images, confidence=confidence)
    if not rows["baseline"]["correct"]:
        doubt = "the original is right on no image there, so that none could be lost"
    drop = 100 * (lost - gained) / images
    return Figure(drop, "points", 100 * low, 100 * high, f"{evidence}: {lost:,} lost, {gained:,} gained", doubt)


def same_radius(one: float, other: float) -> bool:
    """Whether two radii are the same but for their way through text."""
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
