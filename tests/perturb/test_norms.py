import math

import pytest
import torch

from lrcompress.perturb import perturbation_sizes


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
