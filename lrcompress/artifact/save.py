"""From the model to the file."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lrcompress.artifact.files import write_atomically
from lrcompress.artifact.load import assemble_model, check_same_tensors, read_manifest, read_manifest_text, read_tensors
from lrcompress.artifact.manifest import Manifest
from lrcompress.artifact.tensors import METADATA_KEY, digest_tensors, serialize, stored_tensors
from lrcompress.errors import ArtifactError


@dataclass(frozen=True)
class PackedArtifact:
    """An artifact in memory.

    Attributes:
        model: what was packed.
        manifest: with the digest and the shared tensors filled in.
        content: the bytes of the file.
        sha256: of the content.
    """

    model: nn.Module
    manifest: Manifest
    content: bytes
    sha256: str


def pack_artifact(model: nn.Module, manifest: Manifest) -> PackedArtifact:
    """Returns the artifact as it will be written; the same model and manifest give the same bytes.

    Args:
        model: the folded low-rank network, its weights rounded to `manifest.dtype`.
        manifest: its digest and shared tensors are filled in here.

    Raises:
        ArtifactError: if a value is not finite once it is stored.
    """
    tensors, shared = stored_tensors(model, manifest.dtype)
    infinite = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if infinite:
        raise ArtifactError(
            f"`{infinite[0]}` does not fit into {manifest.dtype}, the type of the checkpoint's weights",
            hint="convert the checkpoint to float32 first",
        )
    final = replace(manifest, shared=shared, tensors_sha256=digest_tensors(tensors))
    content = serialize(tensors, {"format": "pt", METADATA_KEY: final.dumps()})
    return PackedArtifact(model, final, content, hashlib.sha256(content).hexdigest())


def save_artifact(path: Path, packed: PackedArtifact) -> None:
    """Writes the artifact.

    The file is written under a temporary name, loaded again as a user would, compared with the model bit for bit, and
    only then renamed.

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
        if read_manifest_text(written) != packed.manifest.dumps():
            raise ArtifactError("the manifest in the written file differs from what was written", hint="check the disk")
        read = assemble_model(written, read_manifest(written), read_tensors(written), arch=arch)
        check_same_tensors(packed.model, read)

    write_atomically(path, packed.content, check=check)
