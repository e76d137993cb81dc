"""Accuracy against ε as an inline SVG drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrcompress.report.verdict import radius

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 16, 44


@dataclass(frozen=True)
class Curve:
    """One model's line: SVG point lists, ready for the template."""

    role: str
    line: str
    band: str
    dots: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A drawing: its curves, and the labels of both axes with their places."""

    curves: Sequence[Curve]
    x_labels: Sequence[tuple[float, str]]
    y_labels: Sequence[tuple[float, str]]
    summary: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def draw_chart(evaluation: Mapping[str, Any]) -> Chart | None:
    """Returns the chart of an evaluation's worst-case accuracy, clean accuracy at ε = 0; None without attacks."""
    if not evaluation["settings"]["attacks"]:
        return None
    models = evaluation["models"]
    radii = [0.0] + [row["eps"] for row in models["compressed"]["attacks"]["worst"] if row["eps"] > 0]
    # Evenly spaced: radii usually double, and on a linear axis all but the last would fall together.
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * index / max(1, len(radii) - 1) for index in range(len(radii))]
    curves = [_curve(role, [model["clean"], *_positive(model)], xs) for role, model in models.items()]
    words = "; ".join(
        f"{role}: " + ", ".join(f"{100 * row['accuracy']:.1f} %" for row in [model["clean"], *_positive(model)])
        for role, model in models.items()
    )
    names = [radius(eps, evaluation["norm"]) if eps else "0" for eps in radii]
    return Chart(
        curves=curves,
        x_labels=list(zip(xs, names, strict=True)),
        y_labels=[(_y(level / 100), f"{level} %") for level in range(0, 101, 20)],
        summary=f"Accuracy at ε = {', '.join(names)}. {words}.",
    )


def _positive(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in model["attacks"]["worst"] if row["eps"] > 0]


def _y(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def _curve(role: str, rows: Sequence[Mapping[str, Any]], xs: Sequence[float]) -> Curve:
    dots = [(x, _y(row["accuracy"])) for x, row in zip(xs, rows, strict=True)]
    low = [(x, _y(row["interval"][0])) for x, row in zip(xs, rows, strict=True)]
    high = [(x, _y(row["interval"][1])) for x, row in zip(xs, rows, strict=True)]
    return Curve(role, _join(dots), _join([*high, *reversed(low)]), dots)


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
