import pickle

import numpy as np
import pytest
import torch
from networks import TensorImages
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import FakeData

from lrcompress.data import ImageSet, open_images, random_subset
from lrcompress.data.pictures import FileImages, FitToInput, TimmImages, find_pictures, replace_transform

SIZE = (6, 6)


def write_files(folder, *, count=4):
    files = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        file = folder / f"{number}.png"
        Image.fromarray(noise).save(file)
        files.append((str(file), number))
    return files


def pictures(kind, folder, mode="RGB"):
    fit = FitToInput((1 if mode == "L" else 3, *SIZE), 1.0, "bilinear")
    if kind == "files":
        return FileImages(write_files(folder), fit, mode=mode, size=SIZE)
    return TimmImages(FakeData(size=4, image_size=(3, 20, 24), num_classes=4), fit, mode=mode, size=SIZE)


def shape_as_pixel(image):
    """A transform that tells what it was given."""
    return torch.tensor([image.height, image.width, len(image.getbands())]).reshape(3, 1, 1) / 100


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["files", "timm"])
def test_another_transform_gets_the_whole_picture_in_the_mode_of_the_network(kind, mode, tmp_path):
    dataset = pictures(kind, tmp_path, mode)
    other = dataset.with_transform(shape_as_pixel)
    assert len(other) == len(dataset) == 4
    assert (other.mode, other.size) == (mode, SIZE)
    for index in range(4):
        pixels, label = other[index]
        assert (pixels * 100).round().flatten().tolist() == [20, 24, len(mode)]
        assert label == dataset[index][1]


@pytest.mark.parametrize("kind", ["files", "timm"])
def test_the_data_set_itself_keeps_its_transform(kind, tmp_path):
    dataset = pictures(kind, tmp_path)
    before = [dataset[index][0] for index in range(4)]
    dataset.with_transform(shape_as_pixel)[0]
    assert all(torch.equal(dataset[index][0], before[index]) for index in range(4))
    assert before[0].shape == (3, *SIZE)


@pytest.mark.parametrize("kind", ["files", "timm"])
def test_a_transform_is_replaced_through_subsets_of_subsets(kind, tmp_path):
    dataset = pictures(kind, tmp_path)
    subset = Subset(Subset(dataset, [3, 1, 2]), [2, 0])
    assert find_pictures(subset) is dataset
    other = replace_transform(subset, shape_as_pixel)
    assert [label for _, label in other] == [label for _, label in subset] == [dataset[2][1], dataset[3][1]]
    assert {pixels.shape for pixels, _ in other} == {(3, 1, 1)}
    assert {pixels.shape for pixels, _ in subset} == {(3, *SIZE)}


def test_images_in_memory_are_no_pictures():
    images = ImageSet(TensorImages(torch.rand(5, 3, 4, 4), torch.arange(5)), (), "noise")
    assert find_pictures(images.dataset) is None
    assert find_pictures(random_subset(images, 3, seed=0).dataset) is None


@pytest.mark.parametrize("kind", ["files", "timm"])
def test_pictures_can_be_sent_to_another_process(kind, tmp_path):
    dataset = pictures(kind, tmp_path)
    sent = pickle.loads(pickle.dumps(Subset(dataset, [1, 2])))
    assert torch.equal(sent[0][0], dataset[1][0])


def test_folders_and_samples_are_pictures_of_the_networks_size(tmp_path):
    (tmp_path / "test" / "a").mkdir(parents=True)
    write_files(tmp_path / "test" / "a")
    for source in (str(tmp_path), "samples/imagenet"):
        for channels, mode in ((1, "L"), (3, "RGB")):
            dataset = open_images(source, "test", input_size=(channels, 10, 12)).dataset
            found = find_pictures(dataset)
            assert (found.mode, found.size) == (mode, (10, 12))
            assert dataset[0][0].shape == (channels, 10, 12)
