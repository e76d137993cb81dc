"""Labelled images in [0, 1]: the only form in which the stages see data."""

from lrcompress.data.augment import Augmentation, random_crop_and_flip
from lrcompress.data.images import ImageSet, iterate_batches, random_subset, split_held_out
from lrcompress.data.sources import describe_sources, open_images

__all__ = [
    "Augmentation",
    "ImageSet",
    "describe_sources",
    "iterate_batches",
    "open_images",
    "random_crop_and_flip",
    "random_subset",
    "split_held_out",
]
