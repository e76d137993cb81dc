"""Networks of timm and torchvision and one's own: how they are named, built and fed."""

from lrcompress.models.architecture import (
    Architecture,
    assign_tensors_,
    build_model,
    default_preprocessing,
    is_custom_name,
    known_architectures,
    nearest_names,
    parse_name,
)
from lrcompress.models.hub import HubFile, fetch, is_hub_name
from lrcompress.models.pixels import PixelModel
from lrcompress.models.preprocessing import Preprocessing

__all__ = [
    "Architecture",
    "HubFile",
    "PixelModel",
    "Preprocessing",
    "assign_tensors_",
    "build_model",
    "default_preprocessing",
    "fetch",
    "is_custom_name",
    "is_hub_name",
    "known_architectures",
    "nearest_names",
    "parse_name",
]
