"""Data sets of PIL images: what a picture becomes on its way to the network can be exchanged for training."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lrcompress.errors import DataError

Mode = Literal["RGB", "L"]
ToTensor = Callable[[Image.Image], Float[Tensor, "c h w"]]


class PictureDataset(Dataset[tuple[Tensor, int]], ABC):
    """Labelled pictures that are PIL images at full resolution before a transform makes tensors of them.

    A data set of your own needs this class only if random resized crops are to be cut from its original pictures;
    of any other they are cut from the tensors.

    Attributes:
        mode: PIL's mode of the pictures that the transform gets.
        size: (height, width) of the tensors that the transform returns.
    """

    mode: Mode
    size: tuple[int, int]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def with_transform(self, transform: ToTensor) -> "PictureDataset":
        """Returns the same pictures with another way from the PIL image to the tensor; this data set stays."""


def find_pictures(dataset: Dataset[Any]) -> PictureDataset | None:
    """Returns the pictures a data set is, or is a subset of; None if it is something else."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, PictureDataset) else None


def replace_transform(dataset: Dataset[Any], transform: ToTensor) -> Dataset[Any]:
    """Returns the data set, pictures or a subset of them, with another transform; the given one stays as it is."""
    if isinstance(dataset, Subset):
        return Subset(replace_transform(dataset.dataset, transform), dataset.indices)
    assert isinstance(dataset, PictureDataset)
    return dataset.with_transform(transform)


# A class and no closure: workers of a loader may have to pickle it.
class FitToInput:
    """From a picture of any size to the tensor a network takes: resized and cropped in the centre, in [0, 1].

    Args:
        input_size: (channels, height, width) of the network's input.
        crop_pct: the part of the shorter side that the centre crop keeps, timm's `crop_pct`.
        interpolation: timm's name of the resampling filter.
    """

    def __init__(self, input_size: tuple[int, int, int], crop_pct: float, interpolation: str) -> None:
        from timm.data.transforms_factory import create_transform

        self.size = input_size[1:]
        self.transform: Any = create_transform(
            input_size,
            is_training=False,
            crop_pct=crop_pct,
            interpolation=interpolation,
            mean=(0.0,) * input_size[0],
            std=(1.0,) * input_size[0],
        )

    def __call__(self, image: Image.Image) -> Float[Tensor, "c h w"]:
        """Returns the pixels of the picture, which must have the mode of the network's channels."""
        # Bicubic filters overshoot before the conversion to bytes only; clamp keeps the promise for any transform.
        return torch.as_tensor(self.transform(image)).clamp(0.0, 1.0)


class FileImages(PictureDataset):
    """Images read from files one by one.

    Args:
        samples: (file, class index) pairs.
        transform: from a PIL image to a float32 tensor in [0, 1].
        mode: PIL's mode to convert to.
        size: (height, width) of what the transform returns.
    """

    def __init__(
        self, samples: Sequence[tuple[str, int]], transform: ToTensor, *, mode: Mode, size: tuple[int, int]
    ) -> None:
        self.samples = list(samples)
        self.transform = transform
        self.mode, self.size = mode, size

    def __len__(self) -> int:
        return len(self.samples)

    def fingerprint(self) -> str:
        """Returns a hash of the files' names, sizes and classes: to read them all would take as long as an epoch."""
        digest = hashlib.sha256()
        for file, label in self.samples:
            path = Path(file)
            digest.update(repr((*path.parts[-2:], path.stat().st_size if path.exists() else None, label)).encode())
        return digest.hexdigest()

    def with_transform(self, transform: ToTensor) -> "FileImages":
        """Returns the same files with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.samples[index]
        try:
            with Image.open(file) as image:
                picture = image.convert(self.mode)
        # PIL raises a SyntaxError for a PNG file with a broken chunk.
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(
                f"cannot read the image `{file}`: {str(error) or type(error).__name__}",
                hint="remove or repair the file; nothing is skipped silently",
            ) from error
        return self.transform(picture), label


@dataclass(frozen=True)
class _Converted:
    """A transform that gets every picture in one mode."""

    transform: ToTensor
    mode: Mode

    def __call__(self, image: Image.Image) -> Float[Tensor, "c h w"]:
        return self.transform(image.convert(self.mode))


class TimmImages(PictureDataset):
    """The images of a map-style data set of timm or torchvision.

    Args:
        dataset: gives (picture, class index) and calls its attribute `transform` on the picture.
        transform: from a PIL image to a float32 tensor in [0, 1].
        mode: PIL's mode to convert to.
        size: (height, width) of what the transform returns.
    """

    def __init__(self, dataset: Any, transform: ToTensor, *, mode: Mode, size: tuple[int, int]) -> None:
        self.dataset = copy.copy(dataset)
        self.dataset.transform = _Converted(transform, mode)
        self.mode, self.size = mode, size

    def __len__(self) -> int:
        return len(self.dataset)

    def with_transform(self, transform: ToTensor) -> "TimmImages":
        """Returns the same data set with another transform."""
        return TimmImages(self.dataset, transform, mode=self.mode, size=self.size)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset[index]
