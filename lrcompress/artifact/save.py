"""From the model to the file."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from lrcompress.artifact.files import write_atomically
from lrcompress.artifact.load import check_same_tensors, load_artifact
from lrcompress.artifact.manifest import Manifest
from lrcompress.artifact.tensors import METADATA_KEY, digest_tensors, serialize, stored_tensors


def save_artifact(path: Path, model: nn.Module, manifest: Manifest) -> Manifest:
    """Writes the artifact and returns its final manifest.

    The file is written under a temporary name, loaded again as a user would, compared with the model bit for bit, and
    only then renamed. The same model and manifest give the same bytes.

    Args:
        path: where the file is to be; what is there is replaced.
        model: the folded low-rank network, its weights rounded to `manifest.dtype`.
        manifest: its digest and shared tensors are filled in here.

    Raises:
        OutputError: if the file cannot be written.
        ArtifactError: if what was read again differs.
    """
    tensors, shared = stored_tensors(model, manifest.dtype)
    final = replace(manifest, shared=shared, tensors_sha256=digest_tensors(tensors))
    # Loading again runs the user's own factory, which the user has named for this very run.
    arch = manifest.architecture.name if manifest.architecture.framework == "custom" else None

    def check(written: Path) -> None:
        check_same_tensors(model, load_artifact(written, arch=arch).model)

    write_atomically(path, serialize(tensors, {"format": "pt", METADATA_KEY: final.dumps()}), check=check)
    return final
