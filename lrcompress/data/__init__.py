"""Labelled images in [0, 1]: the only form in which the stages see data."""

from lrcompress.data.augment import Augmentation, random_crop_and_flip
from lrcompress.data.images import (
    ImageSet,
    fingerprint,
    iterate_batches,
    random_subset,
    shard_images,
    shuffle_images,
    slice_images,
    split_held_out,
)
from lrcompress.data.sources import describe_sources, open_images
from lrcompress.data.training import count_training_batches, iterate_training_batches, telling_of_ended_workers

__all__ = [
    "Augmentation",
    "ImageSet",
    "count_training_batches",
    "describe_sources",
    "fingerprint",
    "iterate_batches",
    "iterate_training_batches",
    "open_images",
    "random_crop_and_flip",
    "random_subset",
    "shard_images",
    "shuffle_images",
    "slice_images",
    "split_held_out",
    "telling_of_ended_workers",
]
