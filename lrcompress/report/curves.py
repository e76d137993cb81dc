"""Curves of both models as inline SVG drawings: accuracy against ε, and singular values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lrcompress.report.parts import Chart, Curve, SpectrumChart

# As narrow as a phone, so that the labels stay readable there; wide screens magnify it.
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 42, 18, 12, 42
LABEL_WIDTH = 42
# Of the drawing in a table's cell; the margin is for the marks, whose centres lie on the edge.
SMALL_WIDTH, SMALL_HEIGHT, MARGIN = 120, 48, 4

Point = tuple[float, float]


@dataclass(frozen=True)
class DrawnCurve:
    """One model's line: SVG point lists, ready for the template. Without a band it is empty."""

    role: str
    line: str
    band: str
    dots: Sequence[Point]


@dataclass(frozen=True)
class Drawing:
    """Curves in their places, with the labels of both axes; a line without a label has "".

    Attributes:
        summary: the figures in words.
        axis: what lies along the bottom, "" if nothing is written there.
    """

    summary: str
    curves: Sequence[DrawnCurve]
    x_labels: Sequence[tuple[float, str]]
    y_labels: Sequence[tuple[float, str]]
    axis: str
    width: int
    height: int
    left: int
    right: int
    bottom: int


def draw_chart(chart: Chart) -> Drawing:
    """Returns the drawing of a chart.

    Radii are evenly spaced: they usually double, and on a linear axis all but the last would fall together.
    """
    count = len(chart.radii)
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * index / max(1, count - 1) for index in range(count)]
    labelled = max(2, (WIDTH - LEFT - RIGHT) // LABEL_WIDTH)
    every = -(-count // labelled)
    return Drawing(
        summary=chart.summary,
        curves=[_place(curve, xs) for curve in chart.curves],
        x_labels=list(zip(xs, chart.radii, strict=True))[::every],
        y_labels=[(_y(level / 100), f"{level} %") for level in range(0, 101, 20)],
        axis=chart.axis,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        bottom=HEIGHT - BOTTOM,
    )


def draw_spectrum(chart: SpectrumChart) -> Drawing:
    """Returns the drawing of a layer's singular values, small enough for a table, with a line at every power of ten.

    The last value of each model is marked. What lies below the powers that are shown, lies on the lowest line.
    """
    values = [pair for spectrum in chart.spectra.values() for pair in spectrum]
    widest, top = math.log(max(i for i, _ in values)) or 1.0, max(sigma for _, sigma in values)
    width, height = SMALL_WIDTH - 2 * MARGIN, SMALL_HEIGHT - 2 * MARGIN

    def place(i: float, sigma: float) -> Point:
        below = (math.log10(top) - math.log10(sigma)) / chart.decades if sigma > 0 else 1.0
        return MARGIN + width * math.log(i) / widest, MARGIN + height * min(1.0, below)

    curves = []
    for role, spectrum in chart.spectra.items():
        points = [place(i, sigma) for i, sigma in spectrum]
        curves.append(DrawnCurve(role, _join(points), "", points[-1:]))
    return Drawing(
        summary=chart.summary,
        curves=curves,
        x_labels=(),
        y_labels=[(MARGIN + height * decade / chart.decades, "") for decade in range(chart.decades + 1)],
        axis="",
        width=SMALL_WIDTH,
        height=SMALL_HEIGHT,
        left=MARGIN,
        right=SMALL_WIDTH - MARGIN,
        bottom=SMALL_HEIGHT - MARGIN,
    )


def _y(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def _place(curve: Curve, xs: Sequence[float]) -> DrawnCurve:
    dots = [(x, _y(share)) for x, share in zip(xs, curve.shares, strict=True)]
    low = [(x, _y(end)) for x, (end, _) in zip(xs, curve.intervals, strict=True)]
    high = [(x, _y(end)) for x, (_, end) in zip(xs, curve.intervals, strict=True)]
    return DrawnCurve(curve.role, _join(dots), _join([*high, *reversed(low)]), dots)


def _join(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
