import pytest
import torch

from lrcompress.data import Augmentation, random_crop_and_flip
from lrcompress.data.augment import shift_and_mirror
from lrcompress.errors import OptionError


def augment(images, *, padding, flip, seed=0):
    return random_crop_and_flip(images, padding=padding, flip=flip, generator=torch.Generator().manual_seed(seed))


def candidates(image, padding, flip):
    """Every result that is allowed for one image: all shifts of the image on black, and their mirror images."""
    height, width = image.shape[1:]
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    shifts = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    return shifts + ([shift.flip(-1) for shift in shifts] if flip else [])


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("flip", [True, False])
def test_each_image_is_one_of_its_shifts_or_mirrored_shifts(padding, flip):
    images = torch.rand(40, 3, 5, 4)
    for image, result in zip(images, augment(images, padding=padding, flip=flip), strict=True):
        assert any(torch.equal(result, candidate) for candidate in candidates(image, padding, flip))


def test_without_padding_and_flip_nothing_changes():
    images = torch.rand(5, 2, 4, 6)
    assert torch.equal(augment(images, padding=0, flip=False), images)


def test_every_shift_and_both_sides_occur():
    images = torch.rand(1, 1, 4, 4).expand(400, -1, -1, -1)
    results = {tuple(result.flatten().tolist()) for result in augment(images, padding=1, flip=True)}
    assert len(results) == 2 * 9


def test_about_half_of_the_images_are_mirrored():
    images = torch.rand(1, 1, 2, 3).expand(1000, -1, -1, -1)
    results = augment(images, padding=0, flip=True)
    mirrored = sum(torch.equal(result, images[0].flip(-1)) for result in results)
    assert 430 < mirrored < 570


def test_the_generator_is_the_only_source_of_randomness():
    images = torch.rand(20, 1, 6, 6)
    state = torch.random.get_rng_state()
    first, same, other = (augment(images, padding=2, flip=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_are_cut_at_the_given_places_and_then_mirrored():
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).reshape(1, 1, 2, 3)
    shifts, mirrored = torch.tensor([[1, 1], [0, 1], [1, 2], [1, 2]]), torch.tensor([False, False, False, True])
    results = shift_and_mirror(image.expand(4, -1, -1, -1), padding=1, shifts=shifts, mirrored=mirrored)
    assert results[:, 0].tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[0, 0, 0], [1, 2, 3]],
        [[2, 3, 0], [5, 6, 0]],
        [[0, 3, 2], [0, 6, 5]],
    ]


OUT_OF_RANGE = {
    "--crop": [{"crop": -1}],
    "--crop-scale": [
        {"crop_scale": (0.009, 1.0)},
        {"crop_scale": (0.5, 1.1)},
        {"crop_scale": (0.8, 0.5)},
        {"crop_scale": (float("nan"), 1.0)},
    ],
    "--randaugment": [
        {"randaugment": text}
        for text in ("", "rand-", "augmix-m3", "rand-m9.5", "rand-mstd", "rand-x3", "rand-tsomething", "rand-p1.5")
    ],
    "--mixup": [{"mixup": -0.1}, {"mixup": float("nan")}, {"mixup": float("inf")}],
    "--cutmix": [{"cutmix": -0.1}, {"cutmix": float("inf")}],
}


@pytest.mark.parametrize(
    ("option", "values"), [(option, values) for option, table in OUT_OF_RANGE.items() for values in table]
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_option(option, values):
    with pytest.raises(OptionError) as refused:
        Augmentation(**values)
    assert refused.value.message.startswith(f"{option} must be")
    assert str(next(iter(values.values()))) in refused.value.message
    assert refused.value.hint


def test_values_at_the_ends_of_their_ranges_are_taken():
    Augmentation(crop=0, crop_scale=(1.0, 1.0), mixup=0.0, cutmix=0.0)
    Augmentation(crop_scale=(0.01, 0.01))
