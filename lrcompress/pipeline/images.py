"""The images of a source, as a network takes them."""

from lrcompress.data import ImageSet, open_images
from lrcompress.errors import DataError, OptionError
from lrcompress.models import Preprocessing


def open_for(preprocessing: Preprocessing, num_classes: int, source: str, split: str) -> ImageSet:
    """Returns the images of a source as a network takes them.

    Raises:
        DataError: if the number of classes does not fit the network.
    """
    if split not in ("train", "test"):
        raise OptionError(f"no split named `{split}`", hint="train or test")
    images = open_images(
        source,
        "train" if split == "train" else "test",
        input_size=preprocessing.input_size,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
    )
    if images.class_names and len(images.class_names) != num_classes:
        raise DataError(
            f"`{source}` has {len(images.class_names)} classes, the network {num_classes}",
            hint="give the data set the network was trained on",
        )
    return images
