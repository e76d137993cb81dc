"""What documents show of an evaluation: curves, tables, doubts and examples."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lrcompress.perturb import format_radius
from lrcompress.report.parts import Chart, Command, Curve, Example, Gallery, Note, Part, Picture, Section, Table
from lrcompress.report.words import NORM_SIGNS, paper_scales, paper_sentences, points, radius_of

ROLES = {"baseline": "uncompressed", "compressed": "compressed"}
# What the size of a gradient is measured in, by the norm of the perturbation.
DUAL_SIGNS = {"linf": "ℓ1", "l2": "ℓ2", "l1": "ℓ∞"}
# More classes than this do not fit a page; the JSON has them all.
SHOWN_CLASSES = 20
CHANGE = ", uncompressed → compressed"
SEVERITIES = {
    "error": "The figures are void",
    "unreliable": "Robustness may be overestimated",
    "inconclusive": "Too little evidence",
}


def evaluation_section(evaluation: Mapping[str, Any]) -> Section:
    """Returns everything on one evaluation; what was not measured is left out."""
    attacked = bool(evaluation["settings"]["attacks"])
    title = f"{'Robustness' if attacked else 'Accuracy'} on {evaluation['data']}"
    return Section(title, tuple(_parts(evaluation)))


def percent(share: float | None, digits: int = 1) -> str:
    """Returns a share in %, never -0.0; a dash for none."""
    return "–" if share is None else f"{round(100 * share, digits) + 0.0:.{digits}f} %"


def change(shares: Sequence[float | None]) -> str:
    """Returns the models' shares in %, the uncompressed model's first, without the sign."""
    return " → ".join("–" if share is None else f"{round(100 * share, 1) + 0.0:.1f}" for share in shares)


def figure(value: float | None) -> str:
    """Returns a number with three digits, a dash for none."""
    return "–" if value is None else f"{value:.3g}"


def share_cell(row: Mapping[str, Any]) -> str:
    """Returns an accuracy with its interval."""
    low, high = row["interval"]
    return f"{percent(row['accuracy'], 2)} [{100 * low:.1f}, {100 * high:.1f}]"


def accuracy_chart(evaluation: Mapping[str, Any]) -> Chart | None:
    """Returns worst-case accuracy against ε, clean accuracy at ε = 0; None where no attack has radii."""
    models, norm = evaluation["models"], evaluation["norm"]
    if not models["compressed"]["attacks"].get("worst"):
        return None
    rows = {
        role: [model["clean"], *(row for row in model["attacks"]["worst"] if row["eps"] > 0)]
        for role, model in models.items()
    }
    return Chart(
        curves=[
            Curve(
                role, [row["accuracy"] for row in points], [(row["interval"][0], row["interval"][1]) for row in points]
            )
            for role, points in rows.items()
        ],
        radii=["0", *(format_radius(row["eps"], norm) for row in rows["compressed"][1:])],
        axis=f"radius ε ({NORM_SIGNS[norm]}, pixel units)",
        note=f"Bands: {evaluation['interval']}.",
    )


def _parts(evaluation: Mapping[str, Any]) -> Iterator[Part]:
    for finding in evaluation["findings"]:
        whose = f" ({ROLES.get(finding['model'], finding['model'])} model)" if finding["model"] else ""
        meaning = SEVERITIES[finding["severity"]]
        text = f"{finding['severity'].upper()}{whose}: {meaning}. {finding['message']} [{finding['check']}]"
        yield Note(text, doubt=True)
    chart = accuracy_chart(evaluation)
    if chart is not None:
        yield chart
    yield _accuracies(evaluation)
    if chart is not None:
        yield Note(
            "An image counts as robust at ε if no attack at any radius up to ε succeeded. Models in float32, in eval "
            f"mode, with frozen parameters. Settings: {settings_text(evaluation['settings'])}."
        )
    for sentence in paper_sentences(evaluation):
        yield Note(sentence)
    yield from _measured(evaluation, OPTIONAL)
    yield Command(evaluation["command"])


def tables_beside(evaluation: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of what was asked for beside accuracies under attack, for the terminal."""
    found = _measured(evaluation, ("distances", "transfer", "corruptions", "certified"))
    return [part for part in found if isinstance(part, Table)]


def _measured(evaluation: Mapping[str, Any], names: Iterable[str]) -> Iterator[Part]:
    values = {**evaluation, "distances": evaluation["models"]["compressed"].get("distances")}
    return (OPTIONAL[name](evaluation) for name in names if values.get(name))


def ordered_attacks(evaluation: Mapping[str, Any]) -> list[str]:
    """Returns the attacks that have outcomes, as they were run, after their worst case those that are no part of it.

    JSON sorts them by name.
    """
    measured = evaluation["models"]["compressed"]["attacks"]
    order = [*evaluation["settings"]["attacks"], *measured]
    apart = paper_scales(evaluation["settings"])
    return sorted(measured, key=lambda name: (name in apart, name == "worst", order.index(name)))


def settings_text(values: Mapping[str, Any]) -> str:
    """Returns settings as one line of text; those that are not set or hold several values are left out.

    >>> settings_text({"steps": 20, "random_start": True, "eps_by_trial": False, "suite": None, "eps": [0.1]})
    'steps 20, random start'
    """
    plain = {
        key.replace("_", " "): value
        for key, value in values.items()
        if not isinstance(value, list | dict) and value is not None and value is not False
    }
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in plain.items()}
    return ", ".join(key if value is True else f"{key} {value}" for key, value in shown.items())


def _accuracies(evaluation: Mapping[str, Any]) -> Table:
    models, paired = evaluation["models"], evaluation.get("paired")
    columns = ["attack", "ε", *(ROLES[role] for role in models)]
    columns += ["difference", "lost", "gained", "McNemar p"] if paired else []
    pair = _pair_cells(paired["clean"]) if paired else []
    rows = [["none (clean)", "0", *(share_cell(model["clean"]) for model in models.values()), *pair]]
    for attack in ordered_attacks(evaluation):
        points = models["compressed"]["attacks"][attack]
        name = "worst case" if attack == "worst" else attack
        pairs = paired["attacks"].get(attack) if paired else None
        for index, row in enumerate(points):
            cells = [share_cell(model["attacks"][attack][index]) for model in models.values()]
            flips = _pair_cells(pairs[index]) if pairs else [""] * (4 if paired else 0)
            rows.append([name, radius_of(attack, row["eps"], evaluation), *cells, *flips])
    asked = "" if evaluation["complete"] else f" (of {evaluation.get('images_asked', 'more')} asked for)"
    caption = (
        f"{evaluation['images']:,} images{asked}, seed {evaluation['seed']}: share answered rightly, and its "
        f"interval in % ({evaluation['interval']})."
    )
    if paired:
        caption += " Lost: right before and wrong after compression, of the same images."
    return Table(caption, columns, rows)


def _pair_cells(pair: Mapping[str, Any]) -> list[str]:
    interval = ""
    if "interval" in pair:
        low, high = pair["interval"]
        interval = f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return [
        f"{points(pair['difference'], 2)}{interval}",
        f"{pair['lost']:,}",
        f"{pair['gained']:,}",
        f"{pair['p_value']:.2g}",
    ]


def _classes(evaluation: Mapping[str, Any]) -> Table:
    names, classes = evaluation.get("class_names") or [], list(evaluation["per_class"])
    roles = [role for role in ROLES if role in classes[0]]
    radii = [row["eps"] for row in evaluation["models"]["compressed"]["attacks"].get("worst", [])]
    told = [format_radius(eps, evaluation["norm"]) for eps in radii]
    caption = f"Accuracy by class in %{CHANGE if len(roles) > 1 else ''}."
    caption += f" Worst case at ε = {', '.join(told)}." if told else ""
    if len(classes) > SHOWN_CLASSES:
        caption += f" {SHOWN_CLASSES} of {len(classes)} classes, those with the largest loss of clean accuracy first."
        classes = sorted(classes, key=_class_loss, reverse=True)[:SHOWN_CLASSES]
    columns = ["class", "images", "clean", *told]
    rows = []
    for one in classes:
        name = names[one["class"]] if one["class"] < len(names) else str(one["class"])
        worst = [change([one[role]["worst"][index] for role in roles]) for index in range(len(told))]
        rows.append([name, f"{one['images']:,}", change([one[role]["clean"] for role in roles]), *worst])
    return Table(caption, columns, rows)


def _class_loss(one: Mapping[str, Any]) -> float:
    before, after = (one.get(role, {}).get("clean") for role in ROLES)
    return (before or 0.0) - (after or 0.0)


def _transfer(evaluation: Mapping[str, Any]) -> Table:
    values = evaluation["transfer"]
    known = f", {values['images']:,} images that all know" if "images" in values else ""
    caption = (
        f"Transfer: accuracy on images made against one model and shown to another ({values['attack']}, "
        f"ε = {format_radius(values['eps'], evaluation['norm'])}{known}). Where images made elsewhere do more harm "
        "than the model's own, its own attack was too weak."
    )
    rows = []
    for pair, accuracy in values["accuracy"].items():
        source, _, target = pair.partition("→")
        rows.append([ROLES.get(source, source), ROLES.get(target, target), percent(accuracy, 2)])
    return Table(caption, ["made against", "shown to", "accuracy"], rows, texts=(1,))


def _distances(evaluation: Mapping[str, Any]) -> Table:
    rows = []
    for role, model in evaluation["models"].items():
        for attack, found in model.get("distances", {}).items():
            quartiles = " to ".join(map(figure, found["quartiles"]))
            cells = [ROLES[role], NORM_SIGNS.get(found["norm"], found["norm"]), figure(found["median"]), quartiles]
            rows.append([attack, *cells, f"{found['found']:,}"])
    columns = ["attack", "model", "norm", "median", "quartiles", "found"]
    return Table(
        "Size of the smallest perturbation that changes the answer, in pixel units.", columns, rows, texts=(1,)
    )


def _corruptions(evaluation: Mapping[str, Any]) -> Table:
    values = evaluation["corruptions"]
    models, severities = values["models"], values["severities"]
    columns = ["corruption", *(f"severity {one}" for one in severities)]
    rows = [
        [name, *(change([model[name][index]["accuracy"] for model in models.values()]) for index in range(len(points)))]
        for name, points in models["compressed"].items()
    ]
    caption = f"Accuracy in % on corrupted images, made in memory and seeded per image{CHANGE * (len(models) > 1)}."
    return Table(caption, columns, rows)


def _certified(evaluation: Mapping[str, Any]) -> Table:
    values = evaluation["certified"]
    models = values["models"]
    caption = (
        f"Randomised smoothing, σ = {figure(values['sigma'])}, {values['samples']:,} samples: share of images for "
        f"which the smoothed classifier, not the model itself, is certified in ℓ2 "
        f"with probability {1 - values['alpha']:.6g}."
    )
    rows = [
        [figure(row["radius"]), *(share_cell(model[index]) for model in models.values())]
        for index, row in enumerate(models["compressed"])
    ]
    return Table(caption, ["radius", *(ROLES[role] for role in models)], rows)


def _gradients(evaluation: Mapping[str, Any]) -> Table:
    rows = [
        [ROLES[role], figure(values.get("median_norm")), figure(values.get("median_margin"))]
        for role, values in evaluation["gradients"].items()
    ]
    dual = DUAL_SIGNS.get(evaluation["norm"], "dual")
    caption = (
        f"Gradients of the loss by the pixels ({dual} norm), and the distance at which a linear network of the same "
        f"slope would change its answer ({NORM_SIGNS.get(evaluation['norm'], evaluation['norm'])}). Diagnostics, not "
        "certificates."
    )
    return Table(caption, ["model", "median norm", "median first-order margin"], rows)


def _examples(evaluation: Mapping[str, Any]) -> Gallery:
    names: Sequence[str] = evaluation.get("class_names") or ()
    shown = []
    for one in evaluation["examples"]:
        label = _class_name(one["label"], names)
        answers = []
        for role, called in ROLES.items():
            if (answer := one.get(role)) and "predicted" in answer:
                at = f" at ε = {format_radius(answer['eps'], evaluation['norm'])}" if "eps" in answer else ""
                answers.append(f"the {called} model says {_class_name(answer['predicted'], names)}{at}")
        words = f"Image {one['index']}, labelled {label}: {', '.join(answers)}."
        pictures = [Picture(one["images"][kind], f"{kind} of image {one['index']}, {label}") for kind in PICTURES]
        shown.append(Example(words, pictures))
    return Gallery("Original, perturbation (scaled to be seen) and adversarial image.", shown)


def _class_name(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else f"class {index}"


PICTURES = ("original", "perturbation", "adversarial")
OPTIONAL: dict[str, Callable[[Mapping[str, Any]], Part]] = {
    "per_class": _classes,
    "distances": _distances,
    "transfer": _transfer,
    "corruptions": _corruptions,
    "certified": _certified,
    "gradients": _gradients,
    "examples": _examples,
}
