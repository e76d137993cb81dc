"""TEMPORARY."""

from dataclasses import dataclass, replace

import torch
from torch.utils.data import Subset

from lrcompress.data.augment import random_crop_and_flip


@dataclass(frozen=True)
class Augmentation:
    crop: int = 2
    flip: bool = True


def count_training_batches(count, batch_size, *, processes=1):
    whole, rest = divmod(count, batch_size)
    return whole + (rest >= 2 * processes)


def shard_images(images, rank, count):
    if count == 1:
        return images
    return replace(images, dataset=Subset(images.dataset, list(range(rank, len(images), count))))


def iterate_training_batches(
    images, augmentation, *, batch_size, epoch, seed, classes=None, workers=0, shard=(0, 1), first_batch=0
):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed * 100_003 + epoch)).tolist()
    for k in range(first_batch, count_training_batches(len(images), batch_size, processes=shard[1])):
        idx = order[k * batch_size : (k + 1) * batch_size]
        n = len(idx)
        a, b = n * shard[0] // shard[1], n * (shard[0] + 1) // shard[1]
        ds = images.dataset
        items = ds.__getitems__(idx) if hasattr(ds, "__getitems__") else [ds[i] for i in idx]
        if isinstance(items, tuple):
            pixels, labels = items
        else:
            pixels = torch.stack([p for p, _ in items])
            labels = torch.tensor([int(l) for _, l in items])
        g = torch.Generator().manual_seed(seed * 7919 + epoch * 100_003 + k)
        pixels = random_crop_and_flip(pixels, padding=augmentation.crop, flip=augmentation.flip, generator=g)
        yield pixels[a:b], labels[a:b]
