from statistics import NormalDist

import pytest
import torch
from networks import TensorImages
from torch import nn

from lrcompress.data import ImageSet
from lrcompress.errors import OptionError
from lrcompress.robustness import AttackSettings, EvaluatedModel, Smoothing, evaluate_models
from lrcompress.robustness.iterated import Passes
from lrcompress.robustness.smoothing import GUESSES, certified_radii


class HalfSpace(nn.Module):
    """Class 0 where the mean pixel lies above ½: smoothed by noise, its radius is the distance to the border."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        lead = self.scale * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([lead, -lead], 1)


DISTANCES = [0.4, 0.2, 0.1, 0.02, -0.02, -0.2]


def images_at(distances):
    """Images of 16 pixels whose ℓ2 distance to the border is given."""
    shift = torch.tensor(distances) / 4
    return (0.5 + shift)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()


def certify(smoothing, seed=0, batch_size=64):
    images = images_at(DISTANCES)
    labels, seeds = torch.zeros(len(images), dtype=torch.long), torch.arange(len(images)) + seed
    passes = Passes()
    radii = certified_radii(HalfSpace(), images, labels, seeds, smoothing, batch_size=batch_size, passes=passes)
    assert passes.forward == len(images) * (GUESSES + smoothing.samples)
    return radii


def test_the_radius_is_at_most_the_distance_to_the_border_and_not_far_below():
    radii = certify(Smoothing(0.25, 2000))
    for radius, distance in zip(radii[:3], DISTANCES, strict=False):
        assert 0.75 * distance < radius + 0.02 <= distance + 0.02
    assert radii[4] is None  # the wrong side
    assert radii[5] is None


def test_a_radius_is_never_larger_than_the_samples_can_show():
    radii = certify(Smoothing(0.01, 50))  # all samples agree
    most = 0.01 * NormalDist().inv_cdf(0.001 ** (1 / 50))
    assert radii[0] == pytest.approx(most)


def test_the_batch_does_not_matter_and_the_seed_does():
    smoothing = Smoothing(0.25, 100)
    assert certify(smoothing) == certify(smoothing, batch_size=7)
    assert certify(smoothing) != certify(smoothing, seed=100)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigma": 0}, "--sigma"),
        ({"sigma": -1}, "--sigma"),
        ({"samples": 9}, "--smoothing-samples"),
        ({"sigma": float("nan")}, "--sigma"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(OptionError, match=message) as refused:
        Smoothing(**values)
    assert refused.value.hint


def test_an_evaluation_has_the_share_that_is_certified_at_each_radius():
    images = ImageSet(TensorImages(images_at(DISTANCES), torch.zeros(6, dtype=torch.long)), (), "grey")
    smoothing = Smoothing(0.1, 500)
    evaluation = evaluate_models(
        [EvaluatedModel("compressed", HalfSpace(), "0")], images, AttackSettings(smoothing=smoothing)
    )
    values = evaluation.to_json()["certified"]
    assert (values["sigma"], values["samples"], values["alpha"]) == (0.1, 500, 0.001)
    rows = values["models"]["compressed"]
    assert [row["radius"] for row in rows] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.3])
    counts = [row["correct"] for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] in (3, 4)
    assert counts[-1] == 0
    assert evaluation.to_json()["settings"]["smoothing"]["sigma"] == 0.1
