import pytest

from lrcompress.report.words import points


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.012, "+1.2 points"), (-0.1, "-10.0 points"), (0, "+0.0 points"), (-0.0004, "+0.0 points")],
)
def test_differences_have_a_sign(share, expected):
    assert points(share) == expected
