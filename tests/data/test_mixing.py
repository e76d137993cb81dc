import numpy as np
import pytest
import torch

from lrcompress.data import Augmentation
from lrcompress.data.mixing import mix_neighbours
from lrcompress.errors import DataError


def mix(count, augmentation, *, seed=0, labels=None):
    images = torch.rand(count, 2, 8, 10, generator=torch.Generator().manual_seed(count))
    labels = torch.arange(count) if labels is None else labels
    source = np.random.SeedSequence(seed)
    return images, *mix_neighbours(images, labels, augmentation, classes=max(count, 1), source=source)


def partners(count):
    """0 with 1, 2 with 3, …; the last of an odd number with itself."""
    return [number ^ 1 if number ^ 1 < count else number for number in range(count)]


@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_pixels_are_the_convex_combination_that_the_targets_tell(count):
    images, mixed, targets = mix(count, Augmentation(mixup=1.0))
    share = float(targets[0, 0])
    assert 0.001 < share < 0.999
    for number, partner in enumerate(partners(count)):
        expected = torch.zeros(count)
        expected[number] += share
        expected[partner] += 1 - share
        assert torch.allclose(targets[number], expected, atol=1e-6)
        assert torch.allclose(mixed[number], share * images[number] + (1 - share) * images[partner], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_box_of_the_second_image_has_the_area_that_the_targets_tell(seed):
    images, mixed, targets = mix(4, Augmentation(cutmix=1.0), seed=seed)
    for number, partner in enumerate([1, 0, 3, 2]):
        foreign = (mixed[number] == images[partner]).all(0)
        assert torch.equal((mixed[number] == images[number]).all(0), ~foreign)
        assert float(foreign.float().mean()) == pytest.approx(float(targets[number, partner]), abs=1e-6)
        rows, columns = foreign.any(1).nonzero(), foreign.any(0).nonzero()
        assert len(rows) * len(columns) == int(foreign.sum())


def test_with_both_some_batches_have_boxes_and_some_are_blended():
    kinds = set()
    for seed in range(12):
        images, mixed, _ = mix(2, Augmentation(mixup=1.0, cutmix=1.0), seed=seed)
        kinds.add(bool(((mixed[0] == images[0]) | (mixed[0] == images[1])).all()))
    assert kinds == {True, False}


def test_targets_sum_to_one_also_where_both_images_have_one_class():
    _, _, targets = mix(5, Augmentation(mixup=0.4), labels=torch.tensor([2, 2, 0, 1, 4]))
    assert targets.dtype == torch.float32
    assert torch.allclose(targets.sum(1), torch.ones(5))
    assert targets[0].tolist() == pytest.approx([0, 0, 1, 0, 0])
    assert targets[4].tolist() == [0, 0, 0, 0, 1]


def test_white_stays_within_the_range():
    for seed in range(200):
        white = torch.ones(2, 1, 2, 2)
        source = np.random.SeedSequence(seed)
        mixed, _ = mix_neighbours(white, torch.tensor([0, 1]), Augmentation(mixup=1.0), classes=2, source=source)
        assert float(mixed.max()) <= 1


def test_the_given_images_are_not_changed():
    images = torch.rand(4, 1, 3, 3)
    before = images.clone()
    source = np.random.SeedSequence(0)
    mix_neighbours(images, torch.arange(4), Augmentation(mixup=1.0), classes=4, source=source)
    assert torch.equal(images, before)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(DataError, match=f"label {label}, the network has 3 classes") as refused:
        mix(3, Augmentation(mixup=1.0), labels=torch.tensor([0, label, 2]))
    assert refused.value.hint
