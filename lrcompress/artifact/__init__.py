"""Stage 5: a low-rank model becomes one self-describing safetensors file, and the file a model again."""

from lrcompress.artifact.files import check_outputs, write_atomically
from lrcompress.artifact.load import LoadedArtifact, is_artifact, load, load_artifact, read_manifest
from lrcompress.artifact.manifest import Cost, Manifest, installed_versions
from lrcompress.artifact.save import PackedArtifact, pack_artifact, save_artifact
from lrcompress.artifact.tensors import round_weights_
from lrcompress.artifact.verify import Check, verify_artifact

__all__ = [
    "Check",
    "Cost",
    "LoadedArtifact",
    "Manifest",
    "PackedArtifact",
    "check_outputs",
    "installed_versions",
    "is_artifact",
    "load",
    "load_artifact",
    "pack_artifact",
    "read_manifest",
    "round_weights_",
    "save_artifact",
    "verify_artifact",
    "write_atomically",
]
