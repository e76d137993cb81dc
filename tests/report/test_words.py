import pytest

from lrcompress.report.words import points, radius


@pytest.mark.parametrize(
    ("eps", "norm", "expected"),
    [
        (8 / 255, "linf", "8/255"), (1.0, "linf", "255/255"), (0.03, "linf", "0.03"), (0.0, "linf", "0"),
        (0.5, "l2", "0.5"), (8 / 255, "l2", "0.03137"),
    ],
)  # fmt: skip
def test_radii_are_written_as_people_do(eps, norm, expected):
    assert radius(eps, norm) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.012, "+1.2 points"), (-0.1, "-10.0 points"), (0, "+0.0 points"), (-0.0004, "+0.0 points")],
)
def test_differences_have_a_sign(share, expected):
    assert points(share) == expected
