"""Whether the figures of a report agree with the bits of its images."""

from collections.abc import Iterator, Mapping
from typing import Any


def find_contradiction(report: Mapping[str, Any]) -> str:
    """Returns what in a report contradicts something else in it, "" if nothing does.

    Args:
        report: one that follows the schema.
    """
    return next((fault for evaluation in report["evaluations"] for fault in _contradictions(evaluation)), "")


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
