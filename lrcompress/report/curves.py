"""Accuracy against ε as an inline SVG drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrcompress.report.parts import Chart, Curve

# As narrow as a phone, so that the labels stay readable there; wide screens magnify it.
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 42, 18, 12, 42
LABEL_WIDTH = 42


@dataclass(frozen=True)
class DrawnCurve:
    """One model's line: SVG point lists, ready for the template."""

    role: str
    line: str
    band: str
    dots: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A chart with places: its curves, and the labels of both axes."""

    chart: Chart
    curves: Sequence[DrawnCurve]
    x_labels: Sequence[tuple[float, str]]
    y_labels: Sequence[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def draw_chart(chart: Chart) -> Drawing:
    """Returns the drawing of a chart.

    Radii are evenly spaced: they usually double, and on a linear axis all but the last would fall together.
    """
    count = len(chart.radii)
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * index / max(1, count - 1) for index in range(count)]
    labelled = max(2, (WIDTH - LEFT - RIGHT) // LABEL_WIDTH)
    every = -(-count // labelled)
    return Drawing(
        chart=chart,
        curves=[_place(curve, xs) for curve in chart.curves],
        x_labels=list(zip(xs, chart.radii, strict=True))[::every],
        y_labels=[(_y(level / 100), f"{level} %") for level in range(0, 101, 20)],
    )


def _y(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def _place(curve: Curve, xs: Sequence[float]) -> DrawnCurve:
    dots = [(x, _y(share)) for x, share in zip(xs, curve.shares, strict=True)]
    low = [(x, _y(end)) for x, (end, _) in zip(xs, curve.intervals, strict=True)]
    high = [(x, _y(end)) for x, (_, end) in zip(xs, curve.intervals, strict=True)]
    return DrawnCurve(curve.role, _join(dots), _join([*high, *reversed(low)]), dots)


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
