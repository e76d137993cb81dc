"""Compressed networks and their manifests without a checkpoint, for tests of what is written and read."""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrcompress.artifact import Cost, Manifest, installed_versions, pack_artifact, round_weights_, save_artifact
from lrcompress.factorize import describe_layers, factorize, fold_
from lrcompress.models import Architecture, Preprocessing
from lrcompress.plan import RankPolicy, UniformRank, make_plan


def compressed(
    model: nn.Module,
    architecture: Architecture,
    input_size: tuple[int, int, int],
    *,
    dtype: str = "float32",
    policy: RankPolicy | None = None,
    tol: float | None = None,
) -> tuple[nn.Module, Manifest]:
    """Returns the compressed network in memory and a manifest for it."""
    plan = make_plan(model, policy or UniformRank(3), input_size=input_size)
    small = fold_(factorize(model, plan))
    round_weights_(small, dtype)
    channels = input_size[0]
    with torch.no_grad():
        classes = model.eval()(torch.zeros(1, *input_size)).shape[1]
    manifest = Manifest(
        architecture=architecture,
        preprocessing=Preprocessing(
            input_size, (0.25, 0.5, 0.75)[:channels], (0.5, 0.25, 0.125)[:channels], 1.0, "bilinear", "the test"
        ),
        num_classes=classes,
        class_names=(),
        dtype=dtype,
        layers=describe_layers(model, small, plan),
        recipe={"plan": dict(plan.policy), "guaranteed_tol": tol},
        source={
            "path": "w.pt",
            "sha256": "0" * 64,
            "bytes": 100,
            "weight_bytes": 100,
            "match": "by name",
            "wrapper": "",
            "chosen_by": "--arch",
            "candidates": [],
        },
        baseline=Cost(100, 400, 1000),
        compressed=Cost(50, 200, 500),
        shared={},
        tensors_sha256="",
        versions=installed_versions(),
    )
    return small.eval(), manifest


def changed(manifest: Manifest, **values: Any) -> Manifest:
    """Returns the manifest with other values."""
    return dataclasses.replace(manifest, **values)


def save(path: Path, model: nn.Module, manifest: Manifest) -> Manifest:
    """Writes the artifact and returns its final manifest."""
    packed = pack_artifact(model, manifest)
    save_artifact(path, packed)
    return packed.manifest


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any], *, sealed: bool = True) -> None:
    """Changes the manifest of a file by hand; sealed as anybody can who knows the format, with the hash that fits."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["lrcompress"])
    change(manifest)
    if sealed:
        manifest.pop("manifest_sha256")
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        manifest["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"]["lrcompress"] = json.dumps(manifest)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
