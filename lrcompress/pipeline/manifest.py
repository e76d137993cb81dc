"""What is written into an artifact beside its tensors."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from lrcompress.artifact import Cost, Manifest, installed_versions
from lrcompress.checkpoint import LoadedModel
from lrcompress.data import ImageSet
from lrcompress.measure import count_macs, count_parameters, tensor_bytes
from lrcompress.plan import LayerRecord


def describe_result(
    loaded: LoadedModel,
    model: nn.Module,
    layers: tuple[LayerRecord, ...],
    recipe: Mapping[str, Any],
    images: ImageSet | None,
) -> Manifest:
    """Returns the manifest of the folded model; its digest and shared tensors are filled in when it is packed."""
    size = loaded.preprocessing.input_size
    stored_bytes = tensor_bytes(model, getattr(torch, loaded.dtype))
    return Manifest(
        architecture=loaded.architecture,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names=images.class_names if images else (),
        dtype=loaded.dtype,
        layers=layers,
        recipe=recipe,
        source=asdict(loaded.source) | {"candidates": list(loaded.source.candidates)},
        baseline=Cost(count_parameters(loaded.model), loaded.source.bytes, count_macs(loaded.model, size)),
        compressed=Cost(count_parameters(model), stored_bytes, count_macs(model, size)),
        shared={},
        tensors_sha256="",
        versions=installed_versions(),
    )
