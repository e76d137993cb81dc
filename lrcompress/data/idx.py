"""The idx files of MNIST, Fashion-MNIST, KMNIST and EMNIST, plain or gzipped.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from lrcompress.errors import DataError

FILE_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}


def find_idx_files(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Returns the (images, labels) files of a split, or None if the folder has none.

    Looks in the folder itself, in `raw/` and in `*/raw/`, which is where torchvision's downloads lie.
    """
    for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        for prefix in FILE_PREFIXES[split]:
            for suffix in (".gz", ""):
                images = place / f"{prefix}-images-idx3-ubyte{suffix}"
                labels = place / f"{prefix}-labels-idx1-ubyte{suffix}"
                if images.is_file() and labels.is_file():
                    return images, labels
    return None


def read_idx(path: Path) -> UInt8[Tensor, "..."]:
    """Returns the array of one idx file of unsigned bytes.

    Raises:
        DataError: if the file is damaged or holds another type than unsigned bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, dimensions = struct.unpack(">HBB", content[:4])[0::2]
        kind = content[2]
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        array = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"`{path}` is not a whole idx file: {error}", hint="fetch the file again from its source"
        ) from error
    if array.size == 0:
        raise DataError(f"`{path}` is empty", hint="fetch the file again from its source")
    if magic != 0 or kind != 8:
        raise DataError(f"`{path}` is not an idx file of unsigned bytes", hint="fetch the file again from its source")
    return torch.from_numpy(array.copy())


class IdxImages(Dataset[tuple[Tensor, int]]):
    """Images of an idx pair, kept in memory as bytes and handed out as float32 in [0, 1].

    Args:
        images: the file of images, n×h×w bytes.
        labels: the file of labels, n bytes.
        channels: how often the grey channel is repeated (3 for a network that takes colour).
        size: (height, width) to resize to, bilinearly; None keeps the size of the file.
    """

    def __init__(self, images: Path, labels: Path, *, channels: int, size: tuple[int, int] | None) -> None:
        self.images = read_idx(images)
        self.labels = read_idx(labels).long()
        if self.images.ndim != 3 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"`{images}` and `{labels}` do not belong together: shapes {tuple(self.images.shape)} and "
                f"{tuple(self.labels.shape)}",
                hint="images must be n×h×w and labels n; fetch both files from the same source",
            )
        self.channels = channels
        self.size = size

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Returns a hash of all images and labels."""
        return hashlib.sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()

    def __getitems__(self, indices: Sequence[int]) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n"]]:
        """Returns a whole batch at once, which spares the loader one call per image."""
        chosen = torch.as_tensor(indices)
        pixels = self.images[chosen].float().div_(255).unsqueeze(1)
        if self.size is not None and self.size != tuple(pixels.shape[-2:]):
            pixels = torch.nn.functional.interpolate(pixels, self.size, mode="bilinear", antialias=True).clamp_(0, 1)
        return pixels.expand(-1, self.channels, -1, -1), self.labels[chosen]

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])
