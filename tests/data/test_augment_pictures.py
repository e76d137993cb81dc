import random

import numpy as np
import pytest
import torch
from PIL import Image

from lrcompress.data import Augmentation
from lrcompress.data.augment_pictures import PictureAugmentation, mode_of_channels, to_picture
from lrcompress.errors import OptionError

CONFIGURATIONS = (
    "rand",
    "rand-m9-mstd0.5-inc1",
    "rand-m0",
    "rand-m10-n9-p1-inc1",
    "rand-m25-mmax30-p1.0-inc0",
    "rand-mstd101-n3-tweights",
    "rand-t3a-p0.8",
    "rand-t3aw",
)


def noise(mode, *, height=9, width=12):
    channels = {"L": (), "RGB": (3,)}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8))


def seeded(change, image, *, count):
    random.seed(0)
    np.random.seed(0)
    return torch.stack([change(image) for _ in range(count)])


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_configuration_changes_pictures_and_keeps_shape_and_range(configuration, mode):
    image = noise(mode)
    change = PictureAugmentation(Augmentation(randaugment=configuration), size=(9, 12), mode=mode)
    results = seeded(change, image, count=60)
    assert results.shape[1:] == ({"L": 1, "RGB": 3}[mode], 9, 12)
    assert 0 <= results.min() < results.max() <= 1
    original = torch.from_numpy(np.array(image)).reshape(9, 12, -1).permute(2, 0, 1) / 255
    changed = (results - original).abs().amax((1, 2, 3)) > 1e-6
    assert int(changed.sum()) >= 10
    assert len(results.flatten(1).unique(dim=0)) >= 5


def test_the_strength_is_what_the_configuration_says():
    image = noise("RGB")
    means = [
        float(
            (
                seeded(PictureAugmentation(Augmentation(randaugment=text), size=(9, 12), mode="RGB"), image, count=200)
                - torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
            )
            .abs()
            .mean()
        )
        for text in ("rand-p0", "rand-m2-inc1", "rand-m10-inc1")
    ]
    assert means[0] == 0 < means[1] < means[2]


def test_what_a_rotation_brings_in_is_grey_in_both_modes():
    for mode in ("L", "RGB"):
        black = Image.new(mode, (16, 16))
        change = PictureAugmentation(Augmentation(randaugment="rand-m10-n1-p1-inc1"), size=(16, 16), mode=mode)
        (rotate,) = [operation for operation in change.steps[0].ops if operation.name == "Rotate"]
        change.steps[0].ops = [rotate]
        corners = seeded(change, black, count=5)[:, :, 0, 0]
        assert torch.allclose(corners, torch.full_like(corners, 128 / 255))


@pytest.mark.parametrize("scale", [(0.25, 0.25), (1.0, 1.0), (0.1, 0.6)])
def test_crops_keep_the_share_of_the_area_and_the_aspect_ratio(scale):
    # Red and green are the places from left to right and from top to bottom: their ranges are the crop's width and
    # height.
    rows, columns = np.mgrid[0:256, 0:256].astype(np.uint8)
    image = Image.fromarray(np.stack([columns, rows, rows], 2))
    change = PictureAugmentation(Augmentation(crop_scale=scale), size=(64, 64), mode="RGB")
    results = seeded(change, image, count=40)
    width, height = ((results[:, channel].amax((1, 2)) - results[:, channel].amin((1, 2))) for channel in (0, 1))
    assert results.shape == (40, 3, 64, 64)
    area, ratio = width * height, width / height
    assert scale[0] - 0.04 <= area.min() <= area.max() <= scale[1] + 0.04
    assert 0.73 <= ratio.min() <= ratio.max() <= 1.37
    if scale == (0.25, 0.25):
        assert ratio.max() - ratio.min() > 0.2
        assert float(results[:, 0].amin((1, 2)).std()) > 0.1


def test_bytes_survive_the_way_to_a_picture_and_back():
    values = torch.arange(256).reshape(1, 16, 16)
    assert np.array(to_picture(values / 255)).tolist() == values[0].tolist()
    colours = torch.stack([values[0], values[0].T, 255 - values[0]]) / 255
    assert np.array(to_picture(colours))[3, 5].tolist() == [53, 83, 202]


def test_values_between_bytes_are_rounded():
    image = torch.tensor([[[0.0, 99.4, 99.6, 254.7, 255.0]]]) / 255
    assert np.array(to_picture(image)).tolist() == [[0, 99, 100, 255, 255]]


def test_images_of_other_channels_than_one_or_three_are_refused():
    assert (mode_of_channels(1), mode_of_channels(3)) == ("L", "RGB")
    with pytest.raises(OptionError, match=r"--randaugment .* these have 2") as refused:
        mode_of_channels(2)
    assert refused.value.hint
