"""What the figures say, in sentences."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lrcompress.perturb import format_radius
from lrcompress.report.tuning import tuning_sentences
from lrcompress.report.words import NORM_SIGNS, counted_attacks, paper_sentences, points

# Below this difference a timing says nothing, however narrow its spread.
SAME_SPEED = 0.05
# Below this share of the parameters a tolerance has removed next to nothing.
NEXT_TO_NOTHING = 0.05
ROUNDING = 1e-9  # points; a difference of shares is not exact to the last bit


def verdict(report: Mapping[str, Any]) -> list[str]:
    """Returns the sentences that open every rendering of a report: size, speed, accuracy, robustness, doubts."""
    doubts = [f"WARNING: {text}." for text in report["recipe"].get("fine_tuning", {}).get("warnings", [])]
    sentences = [
        *_gates(report.get("gates", [])),
        _size(report["size"]),
        *_ballast(report),
        *_guarantee(report),
        *doubts,
        *_speed(report.get("latency")),
    ]
    if not report["evaluations"]:
        return [*sentences, "Accuracy was not measured: run `lrcompress evaluate FILE --data DIR`."]
    for evaluation in report["evaluations"]:
        accuracy = [*accuracy_sentences(evaluation), *drop_sentences(report["recipe"], evaluation)]
        sentences += [sentence for sentence in accuracy if sentence not in sentences]
        sentences += [*_unfinished(evaluation), *robustness_sentences(evaluation)]
        sentences += [f"{doubt['severity'].upper()}: {doubt['message']}." for doubt in evaluation["findings"]]
    return sentences


def _size(size: Mapping[str, Any]) -> str:
    removed, baseline, compressed = size["removed"], size["baseline"], size["compressed"]
    return (
        f"The file is {_smaller(removed['bytes'])} ({baseline['bytes']:,} → {compressed['bytes']:,} bytes); "
        f"of the whole model {100 * removed['parameters']:.1f} % of the parameters and {100 * removed['macs']:.1f} % "
        "of the multiply-accumulates are gone."
    )


def _smaller(removed: float) -> str:
    """Returns in words what share of a size is gone.

    >>> _smaller(0.254), _smaller(-0.0001)
    ('25.4 % smaller', '0.0 % larger')
    """
    return f"{100 * abs(removed):.1f} % {'smaller' if removed >= 0 else 'larger'}"


def _ballast(report: Mapping[str, Any]) -> list[str]:
    """Says so where a part of the file's reduction comes from dropping what was no weight."""
    file, weights = report["size"]["baseline"]["bytes"], report["source"]["weight_bytes"]
    if file < 1.1 * weights:
        return []
    smaller = 1 - report["size"]["compressed"]["bytes"] / weights
    return [
        f"{file - weights:,} bytes of the original file are no weights of this network (optimiser state, for example): "
        f"against its weights alone the file is {_smaller(smaller)}."
    ]


def _guarantee(report: Mapping[str, Any]) -> list[str]:
    errors = [layer["relative_error"] for layer in report["layers"] if "relative_error" in layer]
    if not errors:
        return [f"No layer was factorised: {_why_none(report)}."]
    several = len(errors) > 1
    factorised = f"{len(errors)} layers are factorised" if several else "1 layer is factorised"
    tol = report["recipe"].get("guaranteed_tol")
    if tol is None:
        if "fine_tuning" in report["recipe"]:
            tuned = tuning_sentences(report["recipe"]["fine_tuning"], report["size"]["removed"]["parameters"])
            if report["recipe"]["fine_tuning"].get("chosen_epoch") == 0:
                return [f"{factorised}; what fine-tuning made of them was worse, and is not in the file.", *tuned]
            return [f"{factorised} and fine-tuned.", *tuned]
        metric = ""
        if calibration := report["recipe"].get("calibration"):
            count = f"{calibration['images']} " if calibration["images"] else ""  # older reports do not know
            metric = f" for the activations of {count}images of {calibration['data']}"
        whose = "their largest" if several else "its"
        return [f"{factorised}{metric}; {whose} relative error is {max(errors):.4f}."]
    each, largest = (", each", "largest ") if several else ("", "")
    within = f"{factorised}{each} within a relative error of {tol:.6g}"
    if max(errors) > tol:
        shipped = "the largest is" if several else "it is"
        return [
            f"{within} before rounding to {report['dtype']}; as shipped {shipped} {max(errors):.4g}, more than that."
        ]
    rounding = "" if report["dtype"] == "float32" else f" before rounding to {report['dtype']}"
    more = ""
    if report["size"]["removed"]["parameters"] < NEXT_TO_NOTHING:
        more = " To remove more: a larger --tol, or --budget 0.5 --calibrate DIR, which asks for a size instead."
    return [f"{within}{rounding} ({largest}{max(errors):.4f}).{more}"]


def _why_none(report: Mapping[str, Any]) -> str:
    if report["recipe"].get("plan", {}).get("name") == "budget":
        return "the whole network is within the budget"
    if any("smallest relative error" in layer.get("reason", "") for layer in report["layers"]):
        return "none would have become smaller. The reason of a layer names the relative error at which it would"
    return "the report has the reason of each"


def _speed(latency: Mapping[str, Any] | None) -> list[str]:
    if latency is None:
        return []
    ratio, (low, high) = latency["ratio"], latency["ratio_quartiles"]
    spread = f"middle half of {latency['rounds']} rounds {low:.2f} to {high:.2f}"
    if high > 1.5 * low:
        word = "too unsteady to tell"
    elif low <= 1 <= high or abs(ratio - 1) < SAME_SPEED:
        word = "no measurable difference"
    else:
        word = f"{1 / ratio:.2f} times as fast" if ratio < 1 else "slower"
    return [
        f"A batch of {latency['batch_size']} takes {ratio:.2f} of the original's time "
        f"({spread}; {latency['device']}): {word}."
    ]


def accuracy_sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """Returns what an evaluation says of clean accuracy."""
    models, images = evaluation["models"], f"{evaluation['images']:,} images of {evaluation['data']}"
    compressed = models["compressed"]["clean"]
    low, high = compressed["interval"]
    after = f"{100 * compressed['accuracy']:.2f} % [{100 * low:.1f}, {100 * high:.1f}]"
    if "baseline" not in models:
        return [f"Clean accuracy {after} on {images} (95 % interval); no baseline."]
    baseline, flips = models["baseline"]["clean"], evaluation["paired"]["clean"]
    return [
        f"Clean accuracy {100 * baseline['accuracy']:.2f} → {after} on {images}: "
        f"{points(compressed['accuracy'] - baseline['accuracy'])} ({flips['lost']} images lost, "
        f"{flips['gained']} gained, McNemar p = {flips['p_value']:.2g})."
    ]


def drop_sentences(recipe: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """Returns a warning where a model that was searched for a largest drop of accuracy loses more in an evaluation."""
    plan = recipe.get("plan", {})
    search, models = plan.get("made_by", plan), evaluation["models"]
    if search.get("name") != "max drop" or "baseline" not in models:
        return []
    drop = 100 * (models["baseline"]["clean"]["accuracy"] - models["compressed"]["clean"]["accuracy"])
    if drop <= search["points"] + ROUNDING:
        return []
    return [
        f"WARNING: {drop:.2f} points are lost on these {evaluation['images']:,} images, more than the "
        f"{search['points']:g} allowed: the search measured on {search['images']:,} training images."
    ]


def robustness_sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """Returns what an evaluation says of robustness: the worst case of all attacks, and what has units of its own."""
    models, norm = evaluation["models"], evaluation["norm"]
    sentences = []
    for index, row in enumerate(models["compressed"]["attacks"].get("worst", [])):
        where = f"{NORM_SIGNS[norm]} ε = {format_radius(row['eps'], norm)}"
        if "baseline" not in models:
            sentences.append(f"{where}: {100 * row['accuracy']:.1f} % robust.")
            continue
        base = models["baseline"]["attacks"]["worst"][index]
        p_value = evaluation["paired"]["attacks"]["worst"][index]["p_value"]
        sentences.append(
            f"{where}: {100 * base['accuracy']:.1f} → {100 * row['accuracy']:.1f} % robust "
            f"({points(row['accuracy'] - base['accuracy'])}, McNemar p = {p_value:.2g})."
        )
    opening = [f"Worst case of {strength(evaluation['settings'])}, {evaluation['images']:,} images:"]
    return [*(opening if sentences else []), *sentences, *_distances(models), *paper_sentences(evaluation)]


def strength(settings: Mapping[str, Any]) -> str:
    """Returns of which attacks the worst case is and how long they were run, in words."""
    words = [" + ".join(counted_attacks(settings))]
    words += [f"{settings['steps']} steps"] if "steps" in settings else []
    words += [f"{settings['restarts']} restart(s)"] if "restarts" in settings else []
    return ", ".join(words)


def _distances(models: Mapping[str, Any]) -> list[str]:
    sentences = []
    for name, found in models["compressed"].get("distances", {}).items():
        medians = [model["distances"][name]["median"] for model in models.values()]
        shown = " → ".join("none" if median is None else f"{median:.3g}" for median in medians)
        sentences.append(f"Median size of the smallest {name} perturbation ({NORM_SIGNS[found['norm']]}): {shown}.")
    return sentences


def _unfinished(evaluation: Mapping[str, Any]) -> list[str]:
    if evaluation["complete"]:
        return []
    asked = f" of the {evaluation['images_asked']:,} asked for" if "images_asked" in evaluation else ""
    return [f"A time limit ended this evaluation: {evaluation['images']:,} images{asked} were finished."]


def _gates(outcomes: Sequence[Mapping[str, Any]]) -> list[str]:
    if not outcomes:
        return []
    counts = Counter(outcome["outcome"] for outcome in outcomes)
    words = {"FAIL": "failed", "INCONCLUSIVE": "inconclusive", "PASS": "passed"}
    told = ", ".join(f"{counts[name]} {word}" for name, word in words.items() if counts[name])
    return [f"Gates: {told}."]
