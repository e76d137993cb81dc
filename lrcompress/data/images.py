"""`ImageSet`, the value that stands for labelled images, and what is done with it: split, sample, iterate."""

import hashlib
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

LOOKED_AT = 64  # of images that are no files


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split of one data set.

    Attributes:
        dataset: a map-style data set whose items are (image in [0, 1] as float32 of shape (c, h, w), class index).
        class_names: one name per class, where the source has names.
        description: where the images come from, in words for reports and messages.
    """

    dataset: Dataset[tuple[Tensor, int]]
    class_names: tuple[str, ...]
    description: str

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)  # as map-style data sets are, though torch's class does not say so
        return len(self.dataset)


def _select(images: ImageSet, indices: Sequence[int], description: str) -> ImageSet:
    return replace(images, dataset=Subset(images.dataset, list(indices)), description=description)


def random_subset(images: ImageSet, count: int, *, seed: int) -> ImageSet:
    """Returns `count` images drawn without replacement, in the order of the source; all if there are no more."""
    if count >= len(images):
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[:count].tolist())
    return _select(images, chosen, f"{images.description}, {count} images drawn with seed {seed}")


def shuffle_images(images: ImageSet, *, seed: int) -> ImageSet:
    """Returns all images in an order that is drawn at random."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return _select(images, order, f"{images.description}, in an order drawn with seed {seed}")


def slice_images(images: ImageSet, numbers: range) -> ImageSet:
    """Returns the images with these numbers."""
    return _select(images, numbers, images.description)


def shard_images(images: ImageSet, rank: int, count: int) -> ImageSet:
    """Returns every `count`-th image, beginning with number `rank`: one process's part of an evaluation."""
    return images if count == 1 else _select(images, range(rank, len(images), count), images.description)


def split_held_out(images: ImageSet, *, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Returns (the rest, a held-out part): `fraction` of the images, at least one, drawn at random.

    Tolerances, weights and the best state of a training run are chosen on the held-out part, never on a test split.
    """
    held_out = max(1, round(len(images) * fraction))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    rest = _select(images, order[held_out:], f"{images.description}, without the held-out part")
    return rest, _select(images, order[:held_out], f"{images.description}, held-out {held_out} images")


def fingerprint(images: ImageSet) -> str:
    """Returns a hash that tells other images and labels of the same number from these, at little cost.

    Of what a data set tells of itself (`fingerprint()`: names, sizes and classes of files, the bytes of what is in
    memory); of others a part of the images is looked at.
    """
    digest, dataset = hashlib.sha256(), images.dataset
    while isinstance(dataset, Subset):
        digest.update(repr(list(dataset.indices)).encode())
        dataset = dataset.dataset
    own = getattr(dataset, "fingerprint", None)
    if own is not None:
        digest.update(own().encode())
    else:
        step = max(1, len(images) // LOOKED_AT)
        for pixels, labels in iterate_batches(slice_images(images, range(0, len(images), step)), batch_size=LOOKED_AT):
            digest.update(pixels.contiguous().numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()


def _collate(items: Any) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n"]]:
    # Not a check of types: data sets that fetch whole batches hand over the finished pair of tensors.
    if isinstance(items, tuple):
        return items
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels)


def fetch(dataset: Dataset[Any], indices: list[int]) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n"]]:
    """Returns the images and labels with these indices, as a loader of one batch would."""
    fetch_all = getattr(dataset, "__getitems__", None)
    return _collate(fetch_all(indices) if fetch_all is not None else [dataset[index] for index in indices])


def iterate_batches(
    images: ImageSet,
    *,
    batch_size: int,
    shuffle_seed: int | None = None,
) -> Iterator[tuple[Float[Tensor, "n c h w"], Int[Tensor, "n"]]]:
    """Yields batches of (images in [0, 1], class indices), in order or shuffled by `shuffle_seed`.

    A last batch of a single image is left out when shuffling: batch norm cannot train on it.
    """
    shuffle = shuffle_seed is not None
    loader = DataLoader(
        images.dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        collate_fn=_collate,
        # One of its own in any case: a loader without one draws from the global generator.
        generator=torch.Generator().manual_seed(shuffle_seed or 0),
        drop_last=shuffle and len(images) % batch_size == 1,
    )
    yield from loader
