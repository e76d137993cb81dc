import gzip

import pytest
import torch
from idx_files import write_idx_pair
from networks import TensorImages
from PIL import Image

from lrcompress.data import ImageSet, fingerprint, iterate_batches, open_images, random_subset, split_held_out


def numbered(count):
    """Images whose pixels and labels are their own number."""
    numbers = torch.arange(count)
    pixels = (numbers / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return ImageSet(TensorImages(pixels, numbers), (), f"{count} numbers")


def numbers_of(images):
    return [images.dataset[index][1] for index in range(len(images))]


@pytest.mark.parametrize("count", [1, 5, 19])
def test_a_subset_is_drawn_without_replacement_in_the_order_of_the_source(count):
    chosen = numbers_of(random_subset(numbered(20), count, seed=3))
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))


def test_a_subset_depends_on_the_seed_only():
    draws = [numbers_of(random_subset(numbered(50), 10, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("count", [20, 21])
def test_a_subset_of_all_is_the_whole_unchanged(count):
    images = numbered(20)
    assert random_subset(images, count, seed=0) is images


def test_a_subset_says_how_it_was_drawn():
    assert random_subset(numbered(20), 4, seed=7).description == "20 numbers, 4 images drawn with seed 7"


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(20, 0.1, 2), (20, 0.001, 1), (10, 0.5, 5), (2, 0.1, 1)])
def test_the_held_out_part_and_the_rest_are_disjoint_and_complete(count, fraction, held_out):
    rest, kept = split_held_out(numbered(count), fraction=fraction, seed=4)
    assert len(kept) == held_out
    assert sorted(numbers_of(rest) + numbers_of(kept)) == list(range(count))


def test_the_held_out_part_depends_on_the_seed_and_is_drawn_at_random():
    draws = [numbers_of(split_held_out(numbered(100), fraction=0.2, seed=seed)[1]) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert max(draws[0]) > 50 > min(draws[0])


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2])])
def test_batches_in_order_hold_every_image_once(count, batch_size, sizes):
    batches = list(iterate_batches(numbered(count), batch_size=batch_size))
    assert [len(labels) for _, labels in batches] == sizes
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(count))
    for pixels, labels in batches:
        assert torch.equal(pixels[:, 0, 1, 1], labels / 1000)


def test_shuffled_batches_hold_every_image_once_in_the_order_of_the_seed():
    orders = [
        torch.cat([labels for _, labels in iterate_batches(numbered(30), batch_size=8, shuffle_seed=seed)]).tolist()
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(30)) != orders[0]


def test_shuffling_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(iterate_batches(numbered(9), batch_size=4, shuffle_seed=1))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("shuffle_seed", "sizes"), [(1, [4, 4]), (None, [4, 4, 1])])
def test_a_last_batch_of_one_image_is_left_out_when_shuffling_only(shuffle_seed, sizes):
    batches = iterate_batches(numbered(9), batch_size=4, shuffle_seed=shuffle_seed)
    assert [len(labels) for _, labels in batches] == sizes


def test_splits_of_splits_keep_image_and_label_together():
    rest, _ = split_held_out(random_subset(numbered(40), 30, seed=1), fraction=0.2, seed=2)
    for pixels, labels in iterate_batches(rest, batch_size=5, shuffle_seed=3):
        assert torch.equal(pixels[:, 0, 0, 0], labels / 1000)


def test_other_images_have_another_fingerprint():
    images = numbered(200)
    assert fingerprint(images) == fingerprint(numbered(200))
    others = ImageSet(TensorImages(torch.zeros(200, 1, 2, 2), torch.arange(200)), (), "zeros")
    drawn = [random_subset(images, 9, seed=seed) for seed in (0, 0, 1)]
    found = [fingerprint(one) for one in (images, others, *drawn)]
    assert len(set(found)) == 4
    assert found[2] == found[3]


def test_one_file_of_another_size_changes_the_fingerprint(tmp_path):
    def printed():
        return fingerprint(open_images(str(tmp_path), "train", input_size=(3, 8, 8)))

    for split in ("train", "val"):
        for index in range(6):
            folder = tmp_path / split / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    before = printed()
    assert printed() == before
    Image.new("RGB", (9, 8)).save(tmp_path / "train" / "class1" / "3.png")
    assert printed() != before


def test_one_other_byte_changes_the_fingerprint_of_idx_files(tmp_path):
    def printed():
        return fingerprint(open_images(str(tmp_path), "train", input_size=(1, 6, 5)))

    _, labels = write_idx_pair(tmp_path, "train", count=7)
    before = printed()
    content = bytearray(gzip.decompress(labels.read_bytes()))
    content[-1] ^= 1
    labels.write_bytes(gzip.compress(bytes(content)))
    assert printed() != before
