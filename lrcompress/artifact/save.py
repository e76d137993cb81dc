"""From the model to the file."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lrcompress.artifact.files import write_atomically
from lrcompress.artifact.load import assemble_model, read_manifest, read_tensors
from lrcompress.artifact.manifest import Manifest
from lrcompress.artifact.tensors import METADATA_KEY, digest_tensors, iterate_file, stored_tensors
from lrcompress.errors import ArtifactError


@dataclass(frozen=True)
class PackedArtifact:
    """An artifact ready to be written; its tensors are those of the model, and not copied.

    Attributes:
        model: what was packed.
        manifest: with the digest and the shared tensors filled in.
        tensors: as they are stored.
        size: of the file in bytes.
        sha256: of the file.
    """

    model: nn.Module
    manifest: Manifest
    tensors: Mapping[str, Tensor]
    size: int
    sha256: str

    def content(self) -> Iterator[bytes | memoryview]:
        """Yields the bytes of the file piece by piece."""
        return iterate_file(self.tensors, {"format": "pt", METADATA_KEY: self.manifest.dumps()})


def pack_artifact(model: nn.Module, manifest: Manifest) -> PackedArtifact:
    """Returns the artifact as it will be written; the same model and manifest give the same bytes.

    Args:
        model: the folded low-rank network, its weights rounded to `manifest.dtype`.
        manifest: its digest and shared tensors are filled in here.

    Raises:
        ArtifactError: if a value is not finite once it is stored.
    """
    tensors, shared = stored_tensors(model, manifest.dtype)
    meant = _bounds(model)
    infinite = [name for name, value in tensors.items() if name not in meant and not torch.isfinite(value).all()]
    if infinite and manifest.dtype == "float32":
        raise ArtifactError(f"`{infinite[0]}` is not finite", hint="its numbers have overflowed: check the checkpoint")
    if infinite:
        raise ArtifactError(
            f"`{infinite[0]}` does not fit into {manifest.dtype}, the type of the checkpoint's weights",
            hint="convert the checkpoint to float32 first",
        )
    packed = PackedArtifact(
        model, replace(manifest, shared=shared, tensors_sha256=digest_tensors(tensors)), tensors, 0, ""
    )
    size, digest = 0, hashlib.sha256()
    for piece in packed.content():
        size += len(piece)
        digest.update(piece)
    return replace(packed, size=size, sha256=digest.hexdigest())


def save_artifact(path: Path, packed: PackedArtifact) -> None:
    """Writes the artifact.

    The file is written under a temporary name and read again; only if it has every byte of the model, and the network
    that a user will build has a place for each tensor, it is renamed.

    Args:
        path: where the file is to be; what is there is replaced.
        packed: what to write.

    Raises:
        OutputError: if the file cannot be written.
        ArtifactError: if what was read again differs.
    """
    # Loading again runs the user's own factory, which the user has named for this very run.
    architecture = packed.manifest.architecture
    arch = architecture.name if architecture.framework == "custom" else None

    def check(written: Path) -> None:
        digest = hashlib.sha256()
        with written.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != packed.sha256:
            raise ArtifactError("the written file differs from the model", hint="check the disk")
        assemble_model(written, read_manifest(written), read_tensors(written), arch=arch)

    write_atomically(path, packed.content(), check=check)


def _bounds(model: nn.Module) -> set[str]:
    """Returns the buffers whose infinities are meant, limits that do not limit, say: not statistics, and no NaN."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if not isinstance(module, nn.modules.batchnorm._NormBase)
        for name, value in module.named_buffers(recurse=False)
        if torch.isinf(value).any() and not torch.isnan(value).any()
    }
