"""Recognises an architecture by the names and shapes of its tensors.

The table `fingerprints.json` has one entry for each classification architecture of timm and torchvision. It is made by
`python -m lrcompress.checkpoint.make_fingerprints` and names the versions it was made for.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fingerprint:
    """What the table knows of one architecture.

    Attributes:
        keys: hash of the tensor names.
        shapes: hash of names and shapes, with the free dimensions left out.
        classes: (tensor, dimension) pairs whose length is the number of classes.
        channels: (tensor, dimension, factor) triples whose length is the number of input channels times the factor.
    """

    keys: str
    shapes: str
    classes: tuple[tuple[str, int], ...]
    channels: tuple[tuple[str, int, int], ...]

    def free_dimensions(self) -> set[tuple[str, int]]:
        """Returns the (tensor, dimension) pairs that may have any length."""
        return set(self.classes) | {(key, dimension) for key, dimension, _ in self.channels}

    def read_arguments(self, shapes: Shapes) -> dict[str, int]:
        """Returns `num_classes` and `in_chans` as the shapes of a checkpoint have them."""
        arguments = {}
        if self.classes and self.classes[0][0] in shapes:
            key, dimension = self.classes[0]
            arguments["num_classes"] = shapes[key][dimension]
        if self.channels and self.channels[0][0] in shapes:
            key, dimension, factor = self.channels[0]
            arguments["in_chans"] = shapes[key][dimension] // factor
        return arguments


def counted_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Returns the shapes without `num_batches_tracked`, which old checkpoints lack and inference does not use."""
    return {key: tuple(shape) for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}


def hash_keys(shapes: Shapes) -> str:
    """Returns the hash of the tensor names."""
    return _hash(sorted(shapes))


def hash_shapes(shapes: Shapes, free: set[tuple[str, int]]) -> str:
    """Returns the hash of names and shapes, with the free dimensions left out."""
    masked = {
        key: [None if (key, dimension) in free else length for dimension, length in enumerate(shape)]
        for key, shape in shapes.items()
    }
    return _hash(sorted(masked.items()))


@functools.cache
def load_table() -> dict[str, Fingerprint]:
    """Returns the shipped table, by label (`timm/resnet50`)."""
    return {label: _entry(values) for label, values in _read()["architectures"].items()}


def table_versions() -> dict[str, str]:
    """Returns the versions of timm and torchvision the table was made for."""
    return dict(_read()["made_for"])


def find_architectures(shapes: Shapes) -> list[str]:
    """Returns the labels of all architectures with these tensors, the plainest name first.

    Free are the number of classes and of input channels. timm comes before torchvision and shorter names come before
    longer ones, so that `resnet50` precedes `resnetaa50` and `resnetblur50`, whose tensors are the same.
    """
    shapes = counted_shapes(shapes)
    keys = hash_keys(shapes)
    found = [
        label
        for label, entry in load_table().items()
        if entry.keys == keys and entry.shapes == hash_shapes(shapes, entry.free_dimensions())
    ]
    return sorted(found, key=lambda label: (label.startswith("torchvision/"), len(label), label))


def find_same_names(shapes: Shapes) -> list[str]:
    """Returns the labels of architectures whose tensors have the same names but not all the same shapes."""
    keys = hash_keys(counted_shapes(shapes))
    return sorted((label for label, entry in load_table().items() if entry.keys == keys), key=lambda x: (len(x), x))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@functools.cache
def _read() -> Any:
    return json.loads(resources.files("lrcompress.checkpoint").joinpath("fingerprints.json").read_text())


def _entry(values: Mapping[str, Any]) -> Fingerprint:
    return Fingerprint(
        keys=values["keys"],
        shapes=values["shapes"],
        classes=tuple((key, dimension) for key, dimension in values["classes"]),
        channels=tuple((key, dimension, factor) for key, dimension, factor in values["channels"]),
    )
