"""Low-rank compression of pretrained vision networks, with evidence.

>>> import lrcompress
>>> sorted(lrcompress.__all__)
['__version__', 'compress', 'load']
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrcompress.artifact import load
    from lrcompress.pipeline import compress

__version__: str
__all__ = ["__version__", "compress", "load"]


def __getattr__(name: str) -> Any:
    # Found when first asked for: `lrcompress --help` must not wait for torch, nor for importlib.metadata.
    if name == "__version__":
        from importlib import metadata

        return metadata.version("lrcompress")
    if name == "load":
        from lrcompress.artifact import load

        return load
    if name == "compress":
        from lrcompress.pipeline import compress

        return compress
    raise AttributeError(f"module 'lrcompress' has no attribute {name!r}")
