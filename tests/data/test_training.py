import multiprocessing
import os
import random

import numpy as np
import pytest
import torch
from idx_files import write_idx_pair
from networks import TensorImages
from PIL import Image
from torch.utils.data import Dataset

from lrcompress.data import (
    Augmentation,
    ImageSet,
    count_training_batches,
    iterate_training_batches,
    open_images,
    random_subset,
    split_held_out,
    telling_of_ended_workers,
)
from lrcompress.errors import DataError, OptionError

COUNT, CLASSES, BATCH_SIZE = 23, 3, 9
PLAIN = Augmentation(crop=0, flip=False)
EVERYTHING = Augmentation(crop_scale=(0.3, 1.0), randaugment="rand-m9-mstd0.5-inc1", mixup=0.4, cutmix=0.6)
AUGMENTATIONS = {
    "nothing": PLAIN,
    "shifts and mirroring": Augmentation(),
    "crops": Augmentation(crop_scale=(0.2, 0.8)),
    "randaugment": Augmentation(randaugment="rand-m9-mstd0.5-inc1"),
    "mixup": Augmentation(mixup=1.0),
    "everything": EVERYTHING,
}
KINDS = ["tensors", "idx", "files"]


def tensors(count=COUNT, *, channels=3, height=6, width=5):
    """Images of random bytes, with classes in turn."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, height, width), generator=generator) / 255
    return ImageSet(TensorImages(pixels, torch.arange(count) % CLASSES), (), f"{count} tensors")


def numbered(count=COUNT):
    """Images with their own numbers as labels."""
    images = tensors(count)
    return ImageSet(TensorImages(images.dataset.pixels, torch.arange(count)), (), f"{count} numbered tensors")


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_idx_pair(folder / "idx", "train", count=COUNT, classes=CLASSES)
    for number in range(COUNT):
        place = folder / "files" / "train" / "abc"[number % CLASSES]
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{number}.png")
    return {
        "tensors": tensors(),
        "idx": open_images(str(folder / "idx"), "train", input_size=(1, 6, 5)),
        "files": open_images(str(folder / "files"), "train", input_size=(3, 6, 5)),
    }


def batches(images, augmentation=PLAIN, **options):
    options = {"batch_size": BATCH_SIZE, "epoch": 1, "seed": 5, "classes": CLASSES} | options
    return list(iterate_training_batches(images, augmentation, **options))


def joined(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for (pixels, labels), (expected_pixels, expected_labels) in zip(actual, expected, strict=True):
        assert torch.equal(pixels, expected_pixels)
        assert torch.equal(labels, expected_labels)


# What every augmentation of every kind of data set has in common.


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_float32_in_0_to_1_with_classes_or_shares_of_them(kind, augmentation, sources):
    found = batches(sources[kind], augmentation)
    assert [len(labels) for _, labels in found] == [9, 9, 5]
    for pixels, labels in found:
        assert pixels.dtype == torch.float32
        assert pixels.shape[1:] == (1 if kind == "idx" else 3, 6, 5)
        assert 0 <= pixels.min() < pixels.max() <= 1
        if augmentation.mixes:
            assert labels.dtype == torch.float32
            assert torch.allclose(labels.sum(1), torch.ones(len(labels)))
        else:
            assert labels.dtype == torch.int64


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_all_processes_are_the_batches_of_a_single_one(kind, augmentation, processes, sources):
    whole = batches(sources[kind], augmentation)
    shards = [batches(sources[kind], augmentation, shard=(rank, processes)) for rank in range(processes)]
    # Five images are left for the last batch: too few for three processes.
    assert {len(shard) for shard in shards} == {3 if processes == 2 else 2}
    for number, parts in enumerate(zip(*shards, strict=True)):
        sizes = [len(labels) for _, labels in parts]
        assert max(sizes) - min(sizes) <= 1
        assert_equal([joined(parts)], [whole[number]])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_from_any_batch_on_the_epoch_goes_on_as_without_interruption(kind, augmentation, sources):
    whole = batches(sources[kind], augmentation)
    for first in range(4):
        assert_equal(batches(sources[kind], augmentation, first_batch=first), whole[first:])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("kind", "name"), [("tensors", "shifts and mirroring"), ("idx", "everything"), ("files", "everything")]
)
def test_workers_change_nothing(kind, name, workers, sources):
    options = {"first_batch": 1, "shard": (1, 2)}
    expected = batches(sources[kind], AUGMENTATIONS[name], **options)
    assert_equal(batches(sources[kind], AUGMENTATIONS[name], workers=workers, **options), expected)


def seed_globally(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def global_numbers():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generators_are_neither_used_nor_changed(kind, workers, sources):
    seed_globally(1)
    expected = [global_numbers() for _ in range(4)]
    found = []
    for seed in (1, 2):
        seed_globally(seed)
        options = {"batch_size": BATCH_SIZE, "epoch": 1, "seed": 5, "classes": CLASSES, "workers": workers}
        iterator = iterate_training_batches(sources[kind], EVERYTHING, **options)
        numbers = []
        found.append([])
        for batch in iterator:
            found[-1].append(batch)
            numbers.append(global_numbers())
        numbers.append(global_numbers())
        assert (numbers == expected) is (seed == 1)
    assert_equal(found[0], found[1])


@pytest.mark.parametrize("name", ["shifts and mirroring", "crops", "randaugment"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_happens_to_an_image_does_not_depend_on_the_size_of_its_batch(kind, name, sources):
    small, large = (joined(batches(sources[kind], AUGMENTATIONS[name], batch_size=size)) for size in (4, 23))
    assert_equal([small], [large])


@pytest.mark.parametrize("name", ["shifts and mirroring", "crops", "randaugment"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_and_every_seed_augments_in_another_way(kind, name, sources):
    def by_content(**options):
        """The augmented images in the order of the source, which is told by the order without augmentation."""
        plain, changed = (joined(batches(sources[kind], a, **options))[0] for a in (PLAIN, AUGMENTATIONS[name]))
        places = sorted(range(COUNT), key=lambda place: plain[place].flatten().tolist())
        return changed[places]

    found = [by_content(epoch=epoch, seed=seed) for epoch, seed in ((1, 5), (2, 5), (1, 6), (1, 5))]
    assert torch.equal(found[0], found[3])
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert sum(not torch.equal(*pair) for pair in zip(found[first], found[second], strict=True)) > COUNT / 2


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(flip=False),
        Augmentation(flip=False, crop_scale=(0.2, 0.8)),
        Augmentation(crop=0, flip=False, randaugment="rand-m9-mstd0.5-inc1"),
    ],
)
def test_the_same_image_at_the_same_place_is_augmented_in_another_way_in_every_epoch(augmentation):
    same = tensors(1).dataset.pixels.expand(COUNT, -1, -1, -1)
    images = ImageSet(TensorImages(same, torch.zeros(COUNT, dtype=torch.long)), (), "one image")
    first, second = (joined(batches(images, augmentation, epoch=epoch))[0] for epoch in (1, 2))
    for one, other in ((first, second), (first[1:], first[:-1])):
        assert sum(not torch.equal(*pair) for pair in zip(one, other, strict=True)) > COUNT / 2


# Order and number of batches.


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    orders = [
        joined(batches(numbered(), epoch=epoch, seed=seed))[1].tolist()
        for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert sorted(order) == list(range(COUNT)) != order


def test_without_augmentation_every_image_is_itself():
    images = numbered()
    for pixels, labels in batches(images):
        assert torch.equal(pixels, images.dataset.pixels[labels])


def test_the_order_does_not_depend_on_the_augmentation():
    orders = [
        joined(batches(numbered(), augmentation))[1].tolist()
        for augmentation in (PLAIN, *list(AUGMENTATIONS.values())[1:4])
    ]
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize(
    ("count", "batch_size", "processes", "sizes"),
    [
        (9, 4, 1, [4, 4]),
        (10, 4, 1, [4, 4, 2]),
        (8, 4, 1, [4, 4]),
        (1, 4, 1, []),
        (0, 4, 1, []),
        (3, 4, 1, [3]),
        (11, 4, 2, [2, 2]),
        (12, 8, 2, [4, 2]),
        (13, 8, 2, [4, 2]),
    ],
)
def test_a_last_batch_with_fewer_than_two_images_per_process_is_left_out(count, batch_size, processes, sizes):
    found = batches(tensors(count), batch_size=batch_size, shard=(0, processes))
    assert [len(labels) for _, labels in found] == sizes
    assert count_training_batches(count, batch_size=batch_size, processes=processes) == len(sizes)


def test_beyond_the_last_batch_there_is_nothing():
    assert batches(tensors(), first_batch=7) == []


# How data sets are read.


class WatchedImages(Dataset):
    """Images that note which of them were asked for together."""

    def __init__(self, images):
        self.images, self.asked = images, []

    def __len__(self):
        return len(self.images)

    def __getitems__(self, indices):
        self.asked.append(list(indices))
        return [self.images.dataset[index] for index in indices]

    def __getitem__(self, index):
        raise AssertionError("asked for a single image")


@pytest.mark.parametrize(
    "augmentation", [PLAIN, Augmentation(), Augmentation(randaugment="rand"), Augmentation(mixup=1)]
)
def test_whole_batches_are_asked_for_where_a_data_set_can_fetch_them(augmentation):
    watched = WatchedImages(tensors())
    batches(random_subset(ImageSet(watched, (), "watched"), 20, seed=0), augmentation)
    assert [len(indices) for indices in watched.asked] == [9, 9, 2]


def test_only_the_images_that_are_needed_are_read():
    watched = WatchedImages(numbered())
    found = batches(ImageSet(watched, (), "watched"), Augmentation(), first_batch=1, shard=(1, 2))
    assert watched.asked == [labels.tolist() for _, labels in found]
    watched = WatchedImages(tensors())
    batches(ImageSet(watched, (), "watched"), Augmentation(mixup=1.0), first_batch=1, shard=(1, 2))
    # The second part of nine images are five, from the fifth on, whose neighbour is the sixth; of five the third to
    # the fifth, the last of which has no neighbour.
    assert [len(indices) for indices in watched.asked] == [5, 3]


def test_a_neighbour_beyond_the_border_of_the_part_is_read():
    watched = WatchedImages(tensors(10))
    batches(ImageSet(watched, (), "watched"), Augmentation(mixup=1.0), batch_size=10, shard=(0, 2))
    assert [len(indices) for indices in watched.asked] == [6]


# Shifts and mirroring.


def shifts(image, padding):
    height, width = image.shape[1:]
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    places = range(2 * padding + 1)
    return [padded[:, top : top + height, left : left + width] for top in places for left in places]


@pytest.mark.parametrize("crop", [0, 1, 2])
@pytest.mark.parametrize("flip", [True, False])
def test_images_are_shifted_and_mirrored_only_if_wanted(crop, flip):
    images = numbered(60)
    pixels, labels = joined(batches(images, Augmentation(crop=crop, flip=flip), batch_size=20))
    sides = {True: 0, False: 0}
    for image, label in zip(pixels, labels.tolist(), strict=True):
        straight = shifts(images.dataset.pixels[label], crop)
        is_straight = any(torch.equal(image, shift) for shift in straight)
        assert is_straight or any(torch.equal(image, shift.flip(-1)) for shift in straight)
        sides[is_straight] += 1
    assert sides[False] == 0 if not flip else 15 < sides[False] < 45


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flip", [True, False])
def test_crops_are_mirrored_only_if_wanted_and_not_shifted(kind, flip, sources):
    plain, crops = (
        joined(batches(sources[kind], Augmentation(crop=2, flip=flips, crop_scale=(0.3, 0.9))))[0]
        for flips in (False, flip)
    )
    mirrored = [torch.equal(crop, image.flip(-1)) for crop, image in zip(crops, plain, strict=True)]
    straight = [torch.equal(crop, image) for crop, image in zip(crops, plain, strict=True)]
    assert all(a or b for a, b in zip(mirrored, straight, strict=True))
    assert 4 < sum(mirrored) < 19 if flip else sum(mirrored) == 0
    # Shifts would bring in black.
    assert not (crops == 0).flatten(1).all(1).any()


# What PIL does.


def fine_pictures(folder, *, count=6):
    """Large pictures that are black and white in small squares: grey, once they are made small."""
    board = ((np.indices((200, 200)) // 5).sum(0) % 2 * 255).astype(np.uint8)
    for name in "ab":
        (folder / "train" / name).mkdir(parents=True)
        for number in range(count // 2):
            Image.fromarray(board).convert("RGB").save(folder / "train" / name / f"{number}.png")
    return open_images(str(folder), "train", input_size=(3, 8, 8))


def test_pictures_are_cropped_at_their_full_resolution_also_through_subsets(tmp_path):
    images, _ = split_held_out(fine_pictures(tmp_path), fraction=0.1, seed=0)
    grey, crops = (
        joined(batches(images, augmentation))[0] for augmentation in (PLAIN, Augmentation(crop_scale=(0.01, 0.01)))
    )
    assert float((grey - 0.5).abs().max()) < 0.01
    # A hundredth of the area are about four by four squares.
    assert float((crops - 0.5).abs().mean()) > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_randaugment_changes_what_the_network_would_see(kind, sources):
    plain, changed = (
        joined(batches(sources[kind], Augmentation(crop=0, flip=False, randaugment=text)))[0]
        for text in (None, "rand-m9-mstd0.5-inc1")
    )
    different = [not torch.allclose(*pair, atol=1e-6) for pair in zip(plain, changed, strict=True)]
    # Two operations, each done with probability 1/2, and some do little.
    assert COUNT / 3 < sum(different) < COUNT


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_randaugment_leaves_alone_is_not_changed_by_its_way_through_pil(kind, sources):
    plain, same = (
        joined(batches(sources[kind], Augmentation(crop=0, flip=False, randaugment=text)))[0]
        for text in (None, "rand-p0")
    )
    assert torch.allclose(plain, same, atol=1e-7)


def test_crops_and_randaugment_follow_each_other_on_pictures(sources):
    crops, changed = (
        joined(batches(sources["files"], Augmentation(flip=False, crop_scale=(0.3, 0.9), randaugment=text)))[0]
        for text in (None, "rand-m9-inc1")
    )
    assert sum(torch.equal(*pair) for pair in zip(crops, changed, strict=True)) in range(2, 19)


# Mixing, beyond what tests/data/test_mixing.py has.


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_images_are_convex_combinations_of_the_batchs_own_images(kind, sources):
    # In this epoch's order every batch has neighbours of different classes.
    plain = batches(sources[kind], epoch=2)
    mixed = batches(sources[kind], Augmentation(crop=0, flip=False, mixup=1.0), epoch=2)
    shares = []
    for (images, labels), (pixels, targets) in zip(plain, mixed, strict=True):
        paired = [number for number in range(len(labels) // 2 * 2) if labels[number] != labels[number ^ 1]]
        share = float(targets[paired[0], labels[paired[0]]])
        for number in paired:
            expected = share * images[number] + (1 - share) * images[number ^ 1]
            assert torch.allclose(pixels[number], expected, atol=1e-6)
            assert float(targets[number, labels[number]]) == pytest.approx(share)
            assert float(targets[number, labels[number ^ 1]]) == pytest.approx(1 - share, abs=1e-6)
        assert torch.equal(pixels[-1], images[-1])  # of an odd number the last stays as it is
        shares.append(share)
    assert len(set(shares)) == 3


def test_the_shares_depend_on_the_epoch():
    mixed = [batches(numbered(), Augmentation(mixup=1.0), classes=COUNT, epoch=epoch) for epoch in range(3)]
    shares = {float(epoch[0][1][0].max()) for epoch in mixed}
    assert len(shares) == 3


# The held-out part.


@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_source_nor_the_held_out_part_is_augmented(kind, sources):
    images = sources[kind]
    rest, held_out = split_held_out(images, fraction=0.3, seed=1)
    before = [[image for image, _ in part.dataset] for part in (held_out, rest)]
    batches(rest, EVERYTHING)
    for part, unchanged in zip((held_out, rest), before, strict=True):
        assert all(torch.equal(image, same) for (image, _), same in zip(part.dataset, unchanged, strict=True))


def test_held_out_images_are_never_trained_on():
    rest, held_out = split_held_out(numbered(), fraction=0.3, seed=1)
    trained = joined(batches(rest, Augmentation()))[1].tolist()
    assert sorted(trained + [label for _, label in held_out.dataset]) == list(range(COUNT))


# Workers and errors.


def test_workers_end_with_an_epoch_that_is_left_early():
    iterator = iterate_training_batches(
        tensors(), Augmentation(), batch_size=4, epoch=0, seed=0, classes=None, workers=2
    )
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_with_the_hint_also_from_a_worker(tmp_path, workers):
    images = fine_pictures(tmp_path)
    file = tmp_path / "train" / "b" / "1.png"
    file.write_bytes(b"no image")
    with pytest.raises(DataError) as refused:
        batches(images, workers=workers)
    assert refused.value.message.startswith(f"cannot read the image `{file}`: ")
    assert refused.value.hint == "remove or repair the file; nothing is skipped silently"


@pytest.mark.parametrize(("processes", "batch_size", "least"), [(1, 1, 2), (3, 5, 6)])
def test_fewer_than_two_images_per_process_are_refused(processes, batch_size, least):
    with pytest.raises(OptionError, match=f"--batch-size must be at least {least}.* got {batch_size}") as refused:
        batches(tensors(), batch_size=batch_size, shard=(0, processes))
    assert refused.value.hint


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_part_that_does_not_exist_is_refused(shard):
    with pytest.raises(OptionError, match="rank < processes"):
        batches(tensors(), shard=shard)


def test_mixing_needs_the_number_of_classes():
    for augmentation in (Augmentation(mixup=0.1), Augmentation(cutmix=0.1)):
        with pytest.raises(OptionError, match="--mixup and --cutmix need the number of classes"):
            batches(tensors(), augmentation, classes=None)


def test_options_are_refused_before_the_first_batch_is_asked_for():
    with pytest.raises(OptionError):
        iterate_training_batches(tensors(), PLAIN, batch_size=1, epoch=0, seed=0, classes=None)


@pytest.mark.parametrize("augmentation", [Augmentation(randaugment="rand"), Augmentation(crop_scale=(0.5, 1.0))])
def test_pil_cannot_change_images_of_two_channels(augmentation):
    with pytest.raises(OptionError, match="these have 2"):
        batches(tensors(channels=2), augmentation)
    assert len(batches(tensors(channels=2), Augmentation(mixup=0.2))) == 3


def started_batches(count=200):
    """Batches of one worker, the first of them taken, and the worker."""
    pixels = torch.arange(float(count)).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4) / count
    images = ImageSet(TensorImages(pixels, torch.zeros(count, dtype=torch.long)), (), "numbers")
    found = iterate_training_batches(images, Augmentation(), batch_size=2, epoch=0, seed=0, classes=None, workers=1)
    before = set(multiprocessing.active_children())
    next(found)
    (worker,) = set(multiprocessing.active_children()) - before
    return found, worker


def test_a_worker_is_in_a_process_group_of_its_own_that_a_request_to_end_the_run_does_not_reach():
    found, worker = started_batches()
    assert os.getpgid(worker.pid) == worker.pid != os.getpgrp()
    assert sum(len(labels) for _, labels in found) == 200 - 2


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), EOFError(), ConnectionResetError()],
)
def test_a_worker_that_was_ended_is_one_error_with_a_hint(error):
    with pytest.raises(DataError, match="a process that reads images was ended") as told, telling_of_ended_workers():
        raise error
    assert "--workers" in told.value.hint


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="out of memory"), telling_of_ended_workers():
        raise RuntimeError("out of memory")
