import math

import pytest
import torch

from lrcompress.perturb import format_radius, perturbation_sizes


@pytest.mark.parametrize(("norm", "expected"), [("linf", [0.5, 0.0]), ("l2", [math.sqrt(0.25 + 0.16 + 0.01), 0.0])])
def test_sizes_are_those_computed_by_hand_image_by_image(norm, expected):
    delta = torch.zeros(2, 3, 2, 2)
    delta[0, 0, 1, 1], delta[0, 2, 0, 0], delta[0, 1, 0, 1] = -0.5, 0.4, 0.1
    assert perturbation_sizes(delta, norm).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("norm", "order"), [("linf", math.inf), ("l2", 2)])
def test_sizes_agree_with_torch(norm, order):
    delta = torch.randn(5, 3, 4, 6)
    expected = torch.stack([torch.linalg.vector_norm(image, order) for image in delta])
    assert torch.allclose(perturbation_sizes(delta, norm), expected)


@pytest.mark.parametrize(
    ("eps", "norm", "expected"),
    [
        (8 / 255, "linf", "8/255"), (1.0, "linf", "255/255"), (0.03, "linf", "0.03"), (0.0, "linf", "0"),
        (0.5, "l2", "0.5"), (8 / 255, "l2", "0.03137"),
    ],
)  # fmt: skip
def test_radii_are_written_as_people_do(eps, norm, expected):
    assert format_radius(eps, norm) == expected
