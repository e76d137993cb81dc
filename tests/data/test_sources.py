import re

import numpy as np
import pytest
import torch
from idx_files import write_idx_pair
from PIL import Image

from lrcompress.data import describe_sources, open_images
from lrcompress.errors import DataError

SIZE = (3, 8, 8)


def write_class_folders(folder, *, classes=("ant", "bee", "cat"), per_class=2):
    """Writes images of one colour per class: 0, 10, 20, … of 255 and one more per image."""
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            Image.new("RGB", (8, 8), (10 * index + number,) * 3).save(folder / name / f"{number}.png")
    return folder


def values(images):
    """The (byte value, label) of each image of one colour."""
    items = [images.dataset[index] for index in range(len(images))]
    return [(round(float(pixels.mean()) * 255), label) for pixels, label in items]


@pytest.mark.parametrize("test_name", ["test", "val", "validation", "valid", "eval"])
def test_the_splits_of_a_folder_are_its_class_folders(tmp_path, test_name):
    write_class_folders(tmp_path / "train")
    write_class_folders(tmp_path / test_name, per_class=1)
    train, test = (open_images(str(tmp_path), split, input_size=SIZE) for split in ("train", "test"))
    assert values(train) == [(0, 0), (1, 0), (10, 1), (11, 1), (20, 2), (21, 2)]
    assert values(test) == [(0, 0), (10, 1), (20, 2)]
    assert train.class_names == test.class_names == ("ant", "bee", "cat")
    assert str(tmp_path / test_name) in test.description


def test_pixels_are_in_0_to_1_and_not_normalised(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    write_class_folders(tmp_path, per_class=9)
    for split in ("train", "test"):
        for file in tmp_path.glob("*/*.png"):
            Image.fromarray(array).save(file)
        pixels, _ = open_images(str(tmp_path), split, input_size=SIZE).dataset[0]
        assert np.allclose(pixels.numpy().transpose(1, 2, 0), array / 255, atol=1e-6)


def test_images_are_resized_and_cropped_in_the_centre(tmp_path):
    # A white square of half the size in the middle of a black image: the crop keeps the square only.
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (8, 8, 24, 24))
    for name in ("a", "b"):
        (tmp_path / "test" / name).mkdir(parents=True)
        image.save(tmp_path / "test" / name / "0.png")
    whole = open_images(str(tmp_path), "test", input_size=(3, 16, 16), crop_pct=1.0).dataset[0][0]
    cropped = open_images(str(tmp_path), "test", input_size=(3, 16, 16), crop_pct=0.5).dataset[0][0]
    assert float(whole.mean()) == pytest.approx(0.25, abs=0.01)
    assert float(cropped.mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_images_of_any_mode_are_brought_to_the_networks_channels(tmp_path, mode):
    for name in ("a", "b"):
        (tmp_path / "test" / name).mkdir(parents=True)
        kind = "TIFF" if mode == "CMYK" else "PNG"
        Image.new("RGB", (8, 8), (51, 51, 51)).convert(mode).save(tmp_path / "test" / name / f"0.{kind.lower()}")
    if mode == "CMYK":  # .tiff is not among the suffixes that are searched for
        for file in tmp_path.glob("test/*/0.tiff"):
            file.rename(file.with_suffix(".png"))
    for channels in (1, 3):
        pixels, _ = open_images(str(tmp_path), "test", input_size=(channels, 8, 8)).dataset[0]
        assert pixels.shape == (channels, 8, 8)
        assert torch.allclose(pixels, torch.full_like(pixels, 0.2), atol=0.01)


def test_a_folder_with_a_single_split_is_divided_always_in_the_same_way(tmp_path):
    write_class_folders(tmp_path, per_class=10)
    train, test = (values(open_images(str(tmp_path), split, input_size=SIZE)) for split in ("train", "test"))
    assert len(test) == 3  # 10 % of 30
    assert sorted(train + test) == [(10 * label + number, label) for label in range(3) for number in range(10)]
    assert values(open_images(str(tmp_path), "test", input_size=SIZE)) == test
    assert "kept apart" in open_images(str(tmp_path), "test", input_size=SIZE).description


def test_labels_are_the_same_in_both_splits_where_one_lacks_a_class(tmp_path):
    write_class_folders(tmp_path / "train")
    write_class_folders(tmp_path / "val", classes=("ant", "cat"), per_class=1)
    train, test = (open_images(str(tmp_path), split, input_size=SIZE) for split in ("train", "test"))
    cats = {label for value, label in values(train) if value >= 20}
    assert [label for _, label in values(test)] == [0, *cats] == [0, 2]
    assert test.class_names == train.class_names


def test_a_class_that_was_never_trained_is_refused_by_name(tmp_path):
    write_class_folders(tmp_path / "train", classes=("ant", "bee"))
    write_class_folders(tmp_path / "val", classes=("ant", "bee", "wasp"))
    with pytest.raises(DataError, match="wasp") as refused:
        open_images(str(tmp_path), "test", input_size=SIZE)
    assert refused.value.hint


@pytest.mark.parametrize(("present", "missing"), [("train", "test"), ("val", "train")])
def test_a_missing_split_is_named(tmp_path, present, missing):
    write_class_folders(tmp_path / present)
    with pytest.raises(DataError) as refused:
        open_images(str(tmp_path), missing, input_size=SIZE)
    assert f"has `{present}/` but no {missing} split" in refused.value.message
    assert f"`{missing}/`" in refused.value.hint


def test_a_folder_that_does_not_exist_is_answered_with_what_is_allowed(tmp_path):
    with pytest.raises(DataError, match="no data at") as refused:
        open_images(str(tmp_path / "nowhere"), "test", input_size=SIZE)
    assert describe_sources() in refused.value.hint


def test_images_without_labels_are_answered_with_the_option_they_came_from(tmp_path):
    with pytest.raises(DataError, match="no data at") as refused:
        open_images(str(tmp_path / "nowhere"), "train", input_size=SIZE, labelled=False, option="--calibrate")
    assert refused.value.hint.startswith("--calibrate takes any folder of images, ")
    with pytest.raises(DataError, match="has no images") as refused:
        open_images(str(tmp_path), "train", input_size=SIZE, labelled=False, option="--calibrate")
    assert refused.value.hint == "give --calibrate a folder with images"
    with pytest.raises(DataError, match="cannot open") as refused:
        open_images("torch/no_such_set", "train", input_size=SIZE, labelled=False, option="--calibrate")
    assert refused.value.hint.endswith("with --calibrate DIR")


@pytest.mark.parametrize("names", [["0.png", "1.png", "2.png"], ["0.png", "a/1.png", "b/c/2.png"]], ids=str)
def test_images_without_labels_may_lie_anywhere(tmp_path, names):
    for name in names:
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name)
    assert len(open_images(str(tmp_path), "train", input_size=SIZE, labelled=False)) == 3


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty class").mkdir()
    with pytest.raises(DataError, match="has no images") as refused:
        open_images(str(tmp_path), "test", input_size=SIZE)
    assert "one subfolder of images per class" in refused.value.hint


def test_images_without_class_folders_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "lonely.png")
    with pytest.raises(DataError, match=r"outside of class folders, `.*lonely\.png`") as refused:
        open_images(str(tmp_path), "test", input_size=SIZE)
    assert refused.value.hint


def test_a_single_image_cannot_be_divided(tmp_path):
    write_class_folders(tmp_path, classes=("ant",), per_class=1)
    with pytest.raises(DataError, match="one image cannot be divided"):
        open_images(str(tmp_path), "train", input_size=SIZE)


def shortened_chunk(png):
    """Halves the length that the first chunk of pixels claims to have, so that the next one starts inside of it."""
    start = png.index(b"IDAT") - 4
    length = int.from_bytes(png[start : start + 4], "big")
    return png[:start] + (length // 2).to_bytes(4, "big") + png[start + 4 :]


DAMAGES = {
    "empty": lambda png: b"",
    "cut off": lambda png: png[: len(png) // 2],
    "not an image": lambda png: b"hello, I am no image",
    "broken chunk": shortened_chunk,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_an_unreadable_image_is_named_and_not_skipped(tmp_path, damage):
    write_class_folders(tmp_path / "test")
    file = tmp_path / "test" / "bee" / "0.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(damage(file.read_bytes()))
    images = open_images(str(tmp_path), "test", input_size=SIZE)
    assert len(images) == 6
    with pytest.raises(DataError, match=re.escape(str(file))) as refused:
        images.dataset[2]
    assert refused.value.hint


def test_a_folder_of_idx_files_is_read_split_by_split(tmp_path):
    write_idx_pair(tmp_path, "train", count=6)
    write_idx_pair(tmp_path, "t10k", count=3, seed=1)
    train, test = (open_images(str(tmp_path), split, input_size=(1, 6, 5)) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 3)
    assert train.class_names == ("0", "1", "2")
    assert train.dataset[4][1] == 1
    assert "test split" in test.description


@pytest.mark.parametrize(
    ("name", "first_labels"),
    [
        ("imagenet", [243, 559, 438]),
        ("cifar10", [3, 8, 8]),
        ("cifar100", [49, 33, 72]),
        ("mnist", [7, 2, 1]),
        ("fashionMNIST", [9, 2, 1]),
    ],
)
def test_the_samples_of_foolbox_are_twenty_labelled_images(name, first_labels):
    images = open_images(f"samples/{name}", "test", input_size=(3, 28, 28))
    assert len(images) == 20
    assert [images.dataset[index][1] for index in range(3)] == first_labels
    pixels, _ = images.dataset[0]
    assert pixels.shape == (3, 28, 28)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert f"20 {name} samples" in images.description


def test_samples_that_do_not_exist_are_answered_with_those_that_do():
    with pytest.raises(DataError, match="no samples named `cifar`") as refused:
        open_images("samples/cifar", "test", input_size=SIZE)
    assert "samples/cifar10" in refused.value.hint


def test_image_files_cannot_feed_a_network_of_two_channels(tmp_path):
    write_class_folders(tmp_path / "test")
    with pytest.raises(DataError, match="1 or 3 channels, the network takes 2") as refused:
        open_images(str(tmp_path), "test", input_size=(2, 8, 8))
    assert refused.value.hint


def test_an_unknown_timm_data_set_is_an_explained_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match="cannot open `torch/no_such_set`") as refused:
        open_images("torch/no_such_set", "train", input_size=SIZE)
    assert "--data DIR" in refused.value.hint


def test_the_sources_are_described_in_one_line():
    text = describe_sources()
    assert "\n" not in text
    for part in ("samples/imagenet", "torch/", "hfds/", "idx", "train/"):
        assert part in text
