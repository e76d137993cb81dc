"""What stands in for NumPy and pathlib while a torch file is read.

Real training checkpoints hold NumPy scalars and arrays beside their tensors. NumPy's own functions for rebuilding them
trust their arguments: a made-up structured type lets them follow an address that the file supplies. So the reader never
gets to see them. Scalars of plain number types become Python numbers, anything else a value that does nothing.
"""

import argparse
import collections
import pathlib
import struct
from typing import Any

# NumPy's codes of plain number types, and how `struct` reads them.
PLAIN_KINDS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"} | {
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
}


class InertDtype:
    """Stands in for `numpy.dtype`: remembers its code and byte order, makes nothing."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


class InertArray:
    """Stands in for `numpy.ndarray` and for what rebuilds one: its content is dropped."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_scalar(dtype: Any = None, content: Any = None) -> float | int | bool | None:
    """Returns the Python number of a NumPy scalar, None if its type is not a plain number type."""
    form = PLAIN_KINDS.get(dtype.code) if isinstance(dtype, InertDtype) and isinstance(dtype.code, str) else None
    if form is None or not isinstance(content, bytes) or len(content) != struct.calcsize(form):
        return None
    return struct.unpack(dtype.order + form, content)[0]


def read_defaultdict(_default: Any = None) -> dict[Any, Any]:
    """Stands in for `defaultdict`, which torch's safe reader makes but does not fill."""
    return {}


def read_nothing(*_: Any) -> None:
    """Stands in for what a `defaultdict` makes its defaults with."""


# All that a torch file may name besides what torch itself allows.
ALLOWED_GLOBALS: list[Any] = [
    argparse.Namespace,
    collections.OrderedDict,
    (read_defaultdict, "collections.defaultdict"),
    dict,
    set,
    # Paths of any system become pure ones: they are never opened, and a Windows path must be readable on Linux.
    *((pathlib.PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("Path", "PurePath", "PosixPath", "PurePosixPath")),
    *((pathlib.PureWindowsPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("WindowsPath", "PureWindowsPath")),
    *((read_nothing, f"{module}.{name}") for module in ("builtins", "__builtin__")
      for name in ("list", "int", "float")),
    (InertDtype, "numpy.dtype"),
    (InertArray, "numpy.ndarray"),
    *((read_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((InertArray, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]  # fmt: skip
