import itertools

import pytest
from report_values import plain_evaluation
from reports import evaluation

from lrcompress.report.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MARGIN,
    RIGHT,
    SMALL_HEIGHT,
    SMALL_WIDTH,
    TOP,
    WIDTH,
    draw_chart,
    draw_spectrum,
)
from lrcompress.report.evaluation_parts import accuracy_chart
from lrcompress.report.parts import SpectrumChart
from lrcompress.report.upgrade import upgrade_evaluation


def chart(**given):
    return accuracy_chart(upgrade_evaluation(evaluation(**given).to_json()))


def height(share):
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def test_without_attacks_there_is_no_chart():
    assert chart(attacked=False) is None


def test_points_stand_at_their_accuracy_clean_accuracy_first():
    drawing = draw_chart(chart())
    assert [curve.role for curve in drawing.curves] == ["baseline", "compressed"]
    for curve, shares in zip(drawing.curves, [(0.9, 0.5, 0.2), (0.8, 0.6, 0.15)], strict=True):
        assert [y for _, y in curve.dots] == pytest.approx([height(share) for share in shares])
        assert [x for x, _ in curve.dots] == pytest.approx([LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT])
        assert len(curve.line.split()) == 3
        assert len(curve.band.split()) == 6


def test_the_band_holds_the_line_between_its_edges():
    for curve in draw_chart(chart()).curves:
        band = [tuple(map(float, point.split(","))) for point in curve.band.split()]
        for (x, y), (high_x, high), (low_x, low) in zip(curve.dots, band[:3], reversed(band[3:]), strict=True):
            assert high_x == low_x == pytest.approx(x, abs=0.05)
            assert TOP <= high < y < low <= HEIGHT - BOTTOM


def test_axes_are_labelled_and_the_figures_told_in_words():
    drawing = draw_chart(chart())
    assert [label for _, label in drawing.x_labels] == ["0", "4/255", "8/255"]
    assert drawing.y_labels[0] == (height(0), "0 %")
    assert drawing.y_labels[-1] == (height(1), "100 %")
    assert "baseline: 90.0 %, 50.0 %, 20.0 %" in drawing.summary


def test_labels_of_many_radii_do_not_overlap():
    eps = tuple(index / 255 for index in range(1, 31))
    drawing = draw_chart(chart(eps=eps, robust=((5,) * 30, (4,) * 30)))
    places = [x for x, _ in drawing.x_labels]
    assert min(b - a for a, b in itertools.pairwise(places)) > 35
    assert len(drawing.curves[0].dots) == 31


def test_a_radius_of_zero_is_the_clean_point_and_drawn_once():
    drawing = draw_chart(chart(eps=(0.0, 8 / 255)))
    assert [label for _, label in drawing.x_labels] == ["0", "8/255"]
    assert all(len(curve.dots) == 2 for curve in drawing.curves)


def test_a_radius_of_zero_alone_gives_one_point():
    assert all(len(curve.dots) == 1 for curve in draw_chart(chart(eps=(0.0,), robust=((10,), (9,)))).curves)


def test_without_a_baseline_there_is_one_curve():
    assert [curve.role for curve in chart(baseline=False).curves] == ["compressed"]


@pytest.mark.parametrize(("norm", "sign"), [("linf", "ℓ∞"), ("l2", "ℓ2"), ("l1", "ℓ1")])
def test_the_axis_names_the_norm(norm, sign):
    assert sign in accuracy_chart(plain_evaluation(norm=norm)).axis


def drawn(decades=2, **spectra):
    drawing = draw_spectrum(SpectrumChart("a layer", spectra, decades))
    lines = {
        curve.role: [tuple(map(float, point.split(","))) for point in curve.line.split()] for curve in drawing.curves
    }
    return drawing, lines


def test_singular_values_lie_at_their_logarithms_below_the_largest_of_both_models():
    dense, low_rank = [(1, 10.0), (10, 1.0), (100, 0.1)], [(1, 10.0), (10, 10**0.5)]
    drawing, lines = drawn(baseline=dense, compressed=low_rank)
    width, height = SMALL_WIDTH - 2 * MARGIN, SMALL_HEIGHT - 2 * MARGIN
    places = {
        "baseline": [(0, 0), (0.5, 0.5), (1, 1)],
        "compressed": [(0, 0), (0.5, 0.25)],
    }
    for role, expected in places.items():
        for (x, y), (right, down) in zip(lines[role], expected, strict=True):
            assert (x, y) == pytest.approx((MARGIN + right * width, MARGIN + down * height), abs=0.06)
    assert [curve.dots[0] for curve in drawing.curves] == [pytest.approx(lines[role][-1], abs=0.06) for role in places]
    assert [y for y, _ in drawing.y_labels] == pytest.approx([MARGIN, MARGIN + height / 2, MARGIN + height])


def test_singular_values_below_the_scale_and_zeros_lie_on_its_lowest_line():
    _, lines = drawn(baseline=[(1, 1.0), (2, 1e-7), (3, 0.0)])
    assert [y for _, y in lines["baseline"]] == pytest.approx([MARGIN] + [SMALL_HEIGHT - MARGIN] * 2)


def test_a_single_singular_value_is_a_mark():
    drawing, lines = drawn(compressed=[(1, 3.0)])
    assert lines["compressed"] == [(MARGIN, MARGIN)]
    assert drawing.curves[0].dots == [(MARGIN, MARGIN)]
    assert drawing.curves[0].band == ""
