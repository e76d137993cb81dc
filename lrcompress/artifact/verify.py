"""Is the file what it says it is?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lrcompress.artifact.load import assemble_model, read_manifest, read_manifest_text, read_tensors
from lrcompress.artifact.manifest import Manifest, manifest_is_intact
from lrcompress.artifact.tensors import digest_tensors
from lrcompress.nn import LowRankLayer, dense_weight, expose_, plain_layer, twin

# Recorded and measured errors differ by the rounding of float64 sums only.
ERROR_SLACK = 1e-6


@dataclass(frozen=True)
class Check:
    """The outcome of one check: its name, whether it passed (None if it could not be made), and what was found."""

    name: str
    passed: bool | None
    detail: str


def verify_artifact(path: Path, *, arch: str | None = None, original: nn.Module | None = None) -> list[Check]:
    """Returns the outcome of every check of an artifact.

    Args:
        path: the artifact.
        arch: for one's own network the factory that builds it.
        original: the uncompressed network, to measure each layer's error again; None skips this.

    Raises:
        ArtifactError: if the file is so damaged that nothing can be checked.
    """
    manifest = read_manifest(path)
    tensors = read_tensors(path)
    checks = [
        _check_manifest(path, manifest),
        _check_digest(tensors, manifest),
        _check_finite(tensors),
    ]
    if not all(check.passed for check in checks[:2]):
        why = "not made: the file is not as it was written"
        return [*checks, Check("network", None, why), Check("errors", None, why)]
    model = assemble_model(path, manifest, tensors, arch=arch)
    checks.append(Check("network", True, "built, every tensor in its place"))
    if original is None:
        return [*checks, Check("errors", None, "not measured again: the original checkpoint is not at hand")]
    return [*checks, _check_errors(model, original, manifest)]


def _check_manifest(path: Path, manifest: Manifest) -> Check:
    if not manifest_is_intact(read_manifest_text(path)):
        return Check("manifest", False, "changed after it was written: its SHA-256 differs")
    return Check("manifest", True, f"unchanged, {len(manifest.layers)} layers, {manifest.architecture.label}")


def _check_digest(tensors: Mapping[str, Tensor], manifest: Manifest) -> Check:
    found = digest_tensors(tensors)
    same = found == manifest.tensors_sha256
    return Check(
        "digest", same, f"SHA-256 {found[:16]}…" + ("" if same else f", recorded {manifest.tensors_sha256[:16]}…")
    )


def _check_finite(tensors: Mapping[str, Tensor]) -> Check:
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    return Check("finite", not bad, f"{len(tensors)} tensors" if not bad else f"NaN or infinite: {', '.join(bad[:3])}")


def _check_errors(model: nn.Module, original: nn.Module, manifest: Manifest) -> Check:
    """Measures ‖W − W_r‖_F/‖W‖_F from the two files; where a tolerance is guaranteed it must also be within it."""
    worst, exposed = 0.0, expose_(twin(original))
    for record in manifest.layers:
        if record.scheme == "dense":
            continue
        layer = model.get_submodule(record.name)
        assert isinstance(layer, LowRankLayer)  # what loading puts there
        dense = plain_layer(exposed.get_submodule(record.name))
        if dense is None or tuple(dense.weight.shape) != record.dense_shape or record.relative_error is None:
            return Check("errors", False, f"`{record.name}` is not the layer that was factorised")
        weight = dense.weight.detach().double()
        error = float((weight - dense_weight(layer)).norm() / weight.norm())
        if abs(error - record.relative_error) > ERROR_SLACK:
            return Check("errors", False, f"`{record.name}`: {error:.6f}, recorded {record.relative_error:.6f}")
        worst = max(worst, error)
    tol = manifest.recipe.get("guaranteed_tol")
    if tol is None:
        return Check("errors", True, f"largest {worst:.4f}; no bound is claimed")
    # Storing in half precision may add its own rounding to an error that lies just below the bound.
    slack = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[manifest.dtype]
    return Check("errors", worst <= tol + slack, f"largest {worst:.4f}, guaranteed {tol}")
