"""The images of a source, as a network takes them."""

from lrcompress.data import ImageSet, open_images
from lrcompress.errors import DataError, OptionError
from lrcompress.models import Preprocessing


def open_for(
    preprocessing: Preprocessing, num_classes: int | None, source: str, split: str, *, option: str = "--data"
) -> ImageSet:
    """Returns the images of a source as a network takes them.

    Args:
        preprocessing: of the network.
        num_classes: of the network; None if labels do not matter.
        source: what the user wrote after the option.
        split: "train" or "test".
        option: which one, for hints.

    Raises:
        DataError: if there are no such images, or the number of classes does not fit the network.
    """
    if split not in ("train", "test"):
        raise OptionError(f"no split named `{split}`", hint="train or test")
    images = open_images(
        source,
        "train" if split == "train" else "test",
        input_size=preprocessing.input_size,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
        labelled=num_classes is not None,
        option=option,
    )
    if num_classes is not None and images.class_names and len(images.class_names) != num_classes:
        raise DataError(
            f"`{source}` has {len(images.class_names)} classes, the network {num_classes}",
            hint="give the data set the network was trained on, and look for a wrong label",
        )
    return images
