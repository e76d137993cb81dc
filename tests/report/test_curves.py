import pytest
from reports import evaluation

from lrcompress.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw_chart


def height(share):
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)


def test_without_attacks_there_is_no_chart():
    assert draw_chart(evaluation(attacked=False).to_json()) is None


def test_points_stand_at_their_accuracy_clean_accuracy_first():
    chart = draw_chart(evaluation().to_json())
    assert [curve.role for curve in chart.curves] == ["baseline", "compressed"]
    for curve, shares in zip(chart.curves, [(0.9, 0.5, 0.2), (0.8, 0.6, 0.15)], strict=True):
        assert [y for _, y in curve.dots] == pytest.approx([height(share) for share in shares])
        assert [x for x, _ in curve.dots] == pytest.approx([LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT])
        assert len(curve.line.split()) == 3
        assert len(curve.band.split()) == 6


def test_the_band_holds_the_line_between_its_edges():
    for curve in draw_chart(evaluation().to_json()).curves:
        band = [tuple(map(float, point.split(","))) for point in curve.band.split()]
        for (x, y), (high_x, high), (low_x, low) in zip(curve.dots, band[:3], reversed(band[3:]), strict=True):
            assert high_x == low_x == pytest.approx(x, abs=0.05)
            assert TOP <= high < y < low <= HEIGHT - BOTTOM


def test_axes_are_labelled_and_the_figures_told_in_words():
    chart = draw_chart(evaluation().to_json())
    assert [label for _, label in chart.x_labels] == ["0", "4/255", "8/255"]
    assert chart.y_labels[0] == (height(0), "0 %")
    assert chart.y_labels[-1] == (height(1), "100 %")
    assert "baseline: 90.0 %, 50.0 %, 20.0 %" in chart.summary


def test_a_radius_of_zero_is_the_clean_point_and_drawn_once():
    chart = draw_chart(evaluation(eps=(0.0, 8 / 255)).to_json())
    assert [label for _, label in chart.x_labels] == ["0", "8/255"]
    assert all(len(curve.dots) == 2 for curve in chart.curves)


def test_a_radius_of_zero_alone_gives_one_point():
    chart = draw_chart(evaluation(eps=(0.0,), robust=((10,), (9,))).to_json())
    assert all(len(curve.dots) == 1 for curve in chart.curves)


def test_without_a_baseline_there_is_one_curve():
    assert [curve.role for curve in draw_chart(evaluation(baseline=False).to_json()).curves] == ["compressed"]
