"""Giving memory back to the system early: hints, which change no value and are left out where they do not exist."""

import contextlib
import ctypes
import mmap
import sys

from torch import Tensor

# Linux, since 5.4: reclaim these pages now. What is mapped from a file is read again when it is needed.
MADV_PAGEOUT = 21


def release_pages(tensor: Tensor) -> None:
    """Lets go of the memory behind a tensor that is mapped from a file and will not be needed soon.

    Whole pages only. Memory that is not mapped from a file stays as it is where there is no swap space.
    """
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu":
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), MADV_PAGEOUT)


def trim_heap() -> None:
    """Returns freed memory to the system, which the C library keeps for itself otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
