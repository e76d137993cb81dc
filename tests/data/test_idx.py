import gzip
import struct

import numpy as np
import pytest
import torch
from idx_files import idx_bytes, write_idx_pair

from lrcompress.data import ImageSet, iterate_batches, split_held_out
from lrcompress.data.idx import IdxImages, find_idx_files, read_idx
from lrcompress.errors import DataError


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (1, 1, 1)])
def test_the_array_is_read_back_plain_and_gzipped(tmp_path, shape, suffix):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = tmp_path / f"array{suffix}"
    content = idx_bytes(array)
    file.write_bytes(gzip.compress(content) if suffix else content)
    read = read_idx(file)
    assert read.dtype == torch.uint8
    assert read.numpy().tolist() == array.tolist()


WHOLE = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
DAMAGED = {
    "empty": b"",
    "two bytes": WHOLE[:2],
    "header cut off": WHOLE[:9],
    "data cut off": WHOLE[:-1],
    "data too long": WHOLE + b"x",
    "another type": WHOLE[:2] + b"\x0d" + WHOLE[3:],
    "not idx": b"\x89PNG" + WHOLE[4:],
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_file_that_is_not_a_whole_idx_file_is_refused_by_name(tmp_path, content):
    file = tmp_path / "damaged"
    file.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_idx(file)
    assert str(file) in refused.value.message
    assert "fetch the file again" in refused.value.hint


@pytest.mark.parametrize("damage", ["cut off", "not gzip", "changed bits", "wrong checksum"])
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path, damage):
    whole = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)))
    content = {
        "cut off": whole[: len(whole) // 2],
        "not gzip": WHOLE,
        "changed bits": whole[:10] + bytes(byte ^ 0xFF for byte in whole[10:60]) + whole[60:],
        "wrong checksum": whole[:-8] + struct.pack("<I", 1) + whole[-4:],
    }[damage]
    file = tmp_path / "damaged.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match="not a whole idx file"):
        read_idx(file)


@pytest.mark.parametrize("place", [".", "raw", "FashionMNIST/raw"])
def test_the_files_of_a_split_are_found_where_torchvision_puts_them(tmp_path, place):
    train = write_idx_pair(tmp_path / place, "train", count=3)
    test = write_idx_pair(tmp_path / place, "t10k", count=2)
    assert [path.resolve() for path in find_idx_files(tmp_path, "train")] == [path.resolve() for path in train]
    assert [path.resolve() for path in find_idx_files(tmp_path, "test")] == [path.resolve() for path in test]


def test_a_split_without_its_labels_is_not_found(tmp_path):
    write_idx_pair(tmp_path, "train", count=3)[1].unlink()
    assert find_idx_files(tmp_path, "train") is None
    assert find_idx_files(tmp_path, "test") is None


def test_pixels_are_bytes_over_255_and_repeated_over_the_channels(tmp_path):
    images, labels = write_idx_pair(tmp_path, "train", count=4)
    array, classes = read_idx(images).numpy(), read_idx(labels).numpy()
    dataset = IdxImages(images, labels, channels=3, size=None)
    assert len(dataset) == 4
    for index in range(4):
        pixels, label = dataset[index]
        assert label == classes[index]
        assert pixels.shape == (3, 6, 5)
        for channel in pixels:
            assert np.allclose(channel.numpy(), array[index] / 255, atol=1e-7)


def test_images_are_resized_to_the_networks_input(tmp_path):
    files = write_idx_pair(tmp_path, "train", count=2)
    dataset = IdxImages(*files, channels=1, size=(12, 10))
    pixels, _ = dataset[1]
    assert pixels.shape == (1, 12, 10)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    # Doubling the size keeps the mean of each image, up to its border.
    original = read_idx(files[0])[1].float().mean() / 255
    assert float(pixels.mean()) == pytest.approx(float(original), rel=0.1)


def test_a_constant_image_stays_constant_when_resized(tmp_path):
    images, labels = write_idx_pair(tmp_path, "train", count=1)
    images.write_bytes(gzip.compress(idx_bytes(np.full((1, 6, 5), 51, dtype=np.uint8))))
    pixels, _ = IdxImages(images, labels, channels=1, size=(9, 9))[0]
    assert torch.allclose(pixels, torch.full((1, 9, 9), 0.2))


def test_batches_fetched_at_once_equal_images_fetched_one_by_one(tmp_path):
    dataset = IdxImages(*write_idx_pair(tmp_path, "train", count=9), channels=1, size=(7, 7))
    rest, _ = split_held_out(ImageSet(dataset, (), "idx"), fraction=0.3, seed=0)
    pixels, labels = next(iterate_batches(rest, batch_size=6))
    for index in range(6):
        image, label = rest.dataset[index]
        assert torch.equal(image, pixels[index])
        assert label == labels[index]


def test_images_and_labels_of_different_sources_are_refused(tmp_path):
    images, _ = write_idx_pair(tmp_path / "a", "train", count=4)
    _, labels = write_idx_pair(tmp_path / "b", "train", count=5)
    with pytest.raises(DataError, match="do not belong together") as refused:
        IdxImages(images, labels, channels=1, size=None)
    assert "same source" in refused.value.hint
