"""Small idx files, written by hand after the format's description."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """Returns the array of unsigned bytes in the idx format: two zeros, 8, the number of dimensions, the dimensions."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape)
    return header + array.tobytes()


def write_idx_pair(folder: Path, prefix: str, *, count: int, classes: int = 3, seed: int = 0) -> tuple[Path, Path]:
    """Writes `count` random 6×5 images and their labels, and returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 6, 5), dtype=np.uint8)
    labels = (np.arange(count) % classes).astype(np.uint8)
    images_file = folder / f"{prefix}-images-idx3-ubyte.gz"
    labels_file = folder / f"{prefix}-labels-idx1-ubyte.gz"
    images_file.write_bytes(gzip.compress(idx_bytes(pixels)))
    labels_file.write_bytes(gzip.compress(idx_bytes(labels)))
    return images_file, labels_file
