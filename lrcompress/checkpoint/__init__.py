"""Stage 1: a checkpoint file, folder or hub name becomes a `LoadedModel`."""

from lrcompress.checkpoint.load import LoadedModel, Source, find_weights, load_checkpoint, source_files
from lrcompress.checkpoint.options import LoadOptions
from lrcompress.checkpoint.read import file_sha256

__all__ = ["LoadOptions", "LoadedModel", "Source", "file_sha256", "find_weights", "load_checkpoint", "source_files"]
