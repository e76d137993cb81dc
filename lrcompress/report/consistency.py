"""Whether the figures of a report agree with the bits of its images."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FACTORISED = ("ranks", "parameters", "relative_error", "sigma_max", "sigma_min", "stable_rank", "norm", "dense_norm")


def find_contradiction(report: Mapping[str, Any]) -> str:
    """Returns what in a report contradicts something else in it, "" if nothing does.

    Args:
        report: one that follows the schema.
    """
    return next(_in_report(report), "")


def _in_report(report: Mapping[str, Any]) -> Iterator[str]:
    for layer in report["layers"]:
        if layer["scheme"] != "dense" and (missing := [key for key in FACTORISED if key not in layer]):
            yield f"the factorised layer `{layer['name']}` has no `{missing[0]}`"
        for key in ("spectrum", "dense_spectrum"):
            if key in layer and not _is_spectrum(layer[key]):
                yield f"the `{key}` of the layer `{layer['name']}` does not fall from the first value on"
        if "spectrum" in layer and not _has_ends(layer["spectrum"], layer.get("sigma_max"), layer.get("sigma_min")):
            yield f"the `spectrum` of the layer `{layer['name']}` does not go from its σ₁ to its σ_r"
        if 0 in layer["dense_shape"]:
            yield f"the layer `{layer['name']}` has no weights"
    if report["training_log"] and "fine_tuning" not in report["recipe"]:
        yield "there is a log of a fine-tuning, and no fine-tuning"
    for evaluation in report["evaluations"]:
        yield from _contradictions(evaluation)
        yield from _unlike_models(evaluation)


def _is_spectrum(pairs: Sequence[Sequence[float]]) -> bool:
    """Whether these are (i, σ_i) of increasing i from 1 on and falling σ_i."""
    numbers, values = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    rising = all(one < other for one, other in itertools.pairwise(numbers))
    falling = all(one >= other for one, other in itertools.pairwise(values))
    return numbers[0] == 1 and rising and falling


def _has_ends(pairs: Sequence[Sequence[float]], first: float | None, last: float | None) -> bool:
    """Whether the values begin and end with these, but for their rounding."""
    ends = zip((pairs[0][1], pairs[-1][1]), (first, last), strict=True)
    return all(end is not None and math.isclose(value, end, rel_tol=1e-4) for value, end in ends)


def _contradictions(evaluation: Mapping[str, Any]) -> Iterator[str]:
    images, models, data = evaluation["images"], evaluation["models"], evaluation["data"]
    for role, model in models.items():
        for row in (model["clean"], *(row for rows in model["attacks"].values() for row in rows)):
            if len(row["bits"]) != images or row["bits"].count("1") != row["correct"]:
                yield f"the bits of the {role} model on {data} are not those of {row['correct']} of {images} images"
            if abs(row["accuracy"] - row["correct"] / images) > 1e-9:
                yield f"{row['accuracy']} is not {row['correct']} of {images} images of {data}"
    grids = [
        {name: [row["eps"] for row in rows] for name, rows in model["attacks"].items()} for model in models.values()
    ]
    if any(grid != grids[0] for grid in grids):
        yield f"the models on {data} were not attacked alike"
    if "paired" in evaluation:
        yield from _contradicting_flips(evaluation, grids[0])


def _contradicting_flips(evaluation: Mapping[str, Any], grid: Mapping[str, list[float]]) -> Iterator[str]:
    models, paired, data = evaluation["models"], evaluation["paired"], evaluation["data"]
    paired_grid = {name: [row.get("eps") for row in rows] for name, rows in paired["attacks"].items()}
    if "baseline" not in models or any(grid.get(name) != radii for name, radii in paired_grid.items()):
        yield f"the flips on {data} belong to other attacks or models"
        return
    first, second = models["baseline"], models["compressed"]
    triples = [(paired["clean"], first["clean"], second["clean"])]
    for name, pairs in paired["attacks"].items():
        triples += zip(pairs, first["attacks"][name], second["attacks"][name], strict=True)
    for pair, one, other in triples:
        flips = list(zip(one["bits"], other["bits"], strict=True))
        if (pair["lost"], pair["gained"]) != (flips.count(("1", "0")), flips.count(("0", "1"))):
            yield f"{pair['lost']} lost and {pair['gained']} gained are not the flips of the images of {data}"


def _unlike_models(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yields what was measured on one model and not on the other."""
    models, data = evaluation["models"], evaluation["data"]
    worst = len(models["compressed"]["attacks"].get("worst", []))
    counts = {
        "distances": [sorted(model.get("distances", {})) for model in models.values()],
        "classes": [
            (role in one, len(one[role]["worst"]) if role in one else worst)
            for one in evaluation.get("per_class", [])
            for role in ("baseline", "compressed")
            if role in one or role in models
        ],
        "corruptions": [
            {name: len(rows) for name, rows in model.items()}
            for model in evaluation.get("corruptions", {}).get("models", {}).values()
        ],
        "certified radii": [len(rows) for rows in evaluation.get("certified", {}).get("models", {}).values()],
    }
    expected = {"classes": (True, worst)}
    for name, found in counts.items():
        if any(one != expected.get(name, found[0]) for one in found):
            yield f"the {name} of the models on {data} are not the same"
    severities = len(evaluation.get("corruptions", {}).get("severities", []))
    if any(count != severities for model in counts["corruptions"] for count in model.values()):
        yield f"the corruptions on {data} have other severities"
