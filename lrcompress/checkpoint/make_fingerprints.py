"""Makes the table of fingerprints: `python -m lrcompress.checkpoint.make_fingerprints`.

Builds every architecture three times, where possible without storage: as it is, with another number of classes, and
with another number of input channels. What differs is what a checkpoint leaves free. Takes a quarter to half an hour.
"""

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lrcompress.checkpoint.fingerprint import counted_shapes, hash_keys, hash_shapes
from lrcompress.errors import ArchitectureError
from lrcompress.models import Architecture, build_model, known_architectures

TABLE = Path(__file__).with_name("fingerprints.json")
OTHER_CLASSES, OTHER_CHANNELS, USUAL_CHANNELS = 7, 5, 3


def shapes_of(framework: str, name: str, **arguments: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors of an architecture."""
    architecture = Architecture(framework, name, arguments)
    try:
        with torch.device("meta"):
            model = build_model(architecture)
    except ArchitectureError:  # torchvision's RegNets compute their widths with tensors: with storage, then
        model = build_model(architecture)
    return counted_shapes({key: tuple(value.shape) for key, value in model.state_dict().items()})


def changed_dimensions(
    one: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]]
) -> list[tuple[str, int]] | None:
    """Returns the (tensor, dimension) pairs in which two sets of shapes differ; None if the tensors differ."""
    if one.keys() != other.keys() or any(len(one[key]) != len(other[key]) for key in one):
        return None
    return [(key, d) for key in one for d in range(len(one[key])) if one[key][d] != other[key][d]]


def fingerprint(framework: str, name: str) -> dict[str, Any]:
    """Returns the table's entry for one architecture."""
    plain = shapes_of(framework, name)
    classes = changed_dimensions(plain, shapes_of(framework, name, num_classes=OTHER_CLASSES)) or []
    try:
        channels = changed_dimensions(plain, shapes_of(framework, name, in_chans=OTHER_CHANNELS)) or []
    except ArchitectureError:  # some take no other number of channels
        channels = []
    free = set(classes) | set(channels)
    return {
        "keys": hash_keys(plain),
        "shapes": hash_shapes(plain, free),
        "classes": [[key, d] for key, d in classes],
        "channels": [[key, d, plain[key][d] // USUAL_CHANNELS] for key, d in channels],
    }


def main() -> None:
    """Writes the table, and the architectures left out with the reason to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=TABLE)
    output = parser.parse_args().output
    entries: dict[str, Any] = {}
    for framework, names in known_architectures().items():
        for name in sorted(names):
            try:
                entries[f"{framework}/{name}"] = fingerprint(framework, name)
            except Exception as error:
                print(f"left out {framework}/{name}: {str(error).splitlines()[0]}", file=sys.stderr)
    # One line an architecture, so that the table's history can be read.
    lines = [f"{json.dumps(label)}: {json.dumps(entry)}" for label, entry in sorted(entries.items())]
    versions = {name: metadata.version(name).partition("+")[0] for name in ("timm", "torchvision")}
    body = ",\n".join(lines)
    output.write_text(f'{{"made_for": {json.dumps(versions)},\n"architectures": {{\n{body}\n}}}}\n')
    print(f"{len(entries)} architectures → {output}", file=sys.stderr)


if __name__ == "__main__":
    main()
