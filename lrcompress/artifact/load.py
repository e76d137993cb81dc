"""From the file to the model: no pickle, and no code of anybody's unless it is named."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrcompress.artifact.manifest import Manifest, manifest_is_intact
from lrcompress.artifact.tensors import METADATA_KEY, digest_tensors
from lrcompress.errors import ArchitectureError, ArtifactError
from lrcompress.models import Architecture, PixelModel, assign_tensors_, build_model
from lrcompress.nn import expose_, is_weight_layer, parents_to_expose, plain_layer, replace_module_
from lrcompress.plan.plan import DENSE
from lrcompress.schemes import build_layer, can_have

# How a file of torch.save begins: a zip archive, or a pickle of protocol 2 and later.
TORCH_MAGIC = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class LoadedArtifact:
    """A compressed model and its manifest. The model takes normalised images and is in eval mode."""

    model: nn.Module
    manifest: Manifest


def load(path: str | Path, *, pixels: bool = False, arch: str | None = None, device: str = "cpu") -> nn.Module:
    """Returns the compressed network, in eval mode: the network as timm or torchvision users know it.

    Args:
        path: an artifact, `out.safetensors`.
        pixels: put the network behind its own normalisation, so that it takes images in [0, 1].
        arch: for one's own network the factory that builds it, as given at compression
            (`package.module:factory` or `file.py:factory`); it is never run unasked.
        device: where to put it.

    Raises:
        ArtifactError: if the file is not an artifact, is damaged or was changed, or needs `arch`.
        ArchitectureError: if the architecture cannot be built with the installed versions.
    """
    loaded = load_artifact(Path(path), arch=arch)
    model: nn.Module = PixelModel(loaded.model, loaded.manifest.preprocessing) if pixels else loaded.model
    return model.to(device).eval()


def is_artifact(path: Path) -> bool:
    """Whether the file is a safetensors file with a manifest of this program."""
    try:
        return METADATA_KEY in _read_metadata(path)
    except ArtifactError:
        return False


def read_manifest(path: Path) -> Manifest:
    """Returns the manifest of an artifact without reading its tensors.

    Raises:
        ArtifactError: if the file is missing, damaged, or no artifact.
    """
    return Manifest.loads(read_manifest_text(path), str(path))


def read_manifest_text(path: Path) -> str:
    """Returns the manifest's JSON as it stands in the file; errors as for `read_manifest`."""
    metadata = _read_metadata(path)
    if METADATA_KEY not in metadata:
        raise ArtifactError(
            f"`{path}` is a safetensors file, but not one that lrcompress wrote",
            hint=f"lrcompress compress {path} -o small.safetensors",
        )
    return metadata[METADATA_KEY]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the stored tensors of an artifact by name, mapped into memory."""
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping


def load_artifact(path: Path, *, arch: str | None = None) -> LoadedArtifact:
    """Returns the model and the manifest of an artifact whose digests agree; see `load`."""
    text, tensors = read_manifest_text(path), read_tensors(path)
    manifest = Manifest.loads(text, str(path))
    if not manifest_is_intact(text) or digest_tensors(tensors) != manifest.tensors_sha256:
        raise ArtifactError(
            f"`{path}` was changed after it was written: its SHA-256 differs",
            hint=f"copy it anew, or compress again; lrcompress verify {path} tells what differs",
        )
    # Copies: whoever uses the model may write to the file.
    tensors = {name: value.clone() for name, value in tensors.items()}
    return LoadedArtifact(assemble_model(path, manifest, tensors, arch=arch), manifest)


def assemble_model(
    path: Path, manifest: Manifest, tensors: Mapping[str, Tensor], *, arch: str | None = None
) -> nn.Module:
    """Returns the model of what was read from an artifact, in eval mode; the digests are not looked at.

    Raises:
        ArtifactError: if a tensor has no place in the model, or a place no tensor.
    """
    model = build_model(_architecture(manifest, arch, path), without_weights=True)
    _replace_layers_(model, manifest, path)
    values = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    values |= {name: values[original] for name, original in manifest.shared.items() if original in values}
    expected = model.state_dict()
    wrong = sorted(set(expected) ^ set(values)) or sorted(k for k in expected if expected[k].shape != values[k].shape)
    if wrong:
        made = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
        raise ArtifactError(
            f"`{path}` does not fit `{manifest.architecture.label}` at `{wrong[0]}` and {len(wrong) - 1} more",
            hint=f"it was made with {made}; install the same",
        )
    assign_tensors_(model, values)
    return model.eval()


def _read_metadata(path: Path) -> dict[str, str]:
    with _open(path) as file:
        return file.metadata() or {}


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtifactError(f"no file `{path}`", hint="give the .safetensors file that lrcompress compress wrote")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its header, which may be any two bytes, and then the header.
    if start[:2] in TORCH_MAGIC and start[8:] != b"{":
        raise ArtifactError(
            f"`{path}` is a torch checkpoint, not a file that lrcompress wrote",
            hint=f"lrcompress compress {path} -o small.safetensors",
        )
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"`{path}` is not a whole safetensors file: {error}",
            hint="give the .safetensors file that lrcompress compress wrote",
        ) from error


def _architecture(manifest: Manifest, arch: str | None, path: Path) -> Architecture:
    recorded = manifest.architecture
    if recorded.framework != "custom":
        if arch is not None:
            raise ArchitectureError(f"`{path}` is a `{recorded.label}`, --arch does not apply", hint="leave out --arch")
        return recorded
    if arch is None:
        raise ArtifactError(
            f"`{path}` is built by `{recorded.name}`, code that is not run unasked", hint=f"--arch {recorded.name}"
        )
    return Architecture("custom", arch, recorded.arguments)


def _replace_layers_(model: nn.Module, manifest: Manifest, path: Path) -> None:
    factorized = [record for record in manifest.layers if record.scheme != DENSE]
    expose_(model, parents_to_expose(model, [record.name for record in factorized]))
    modules = dict(model.named_modules())
    for record in factorized:
        module = modules.get(record.name)
        layer = plain_layer(module) if module is not None and is_weight_layer(module) else None
        if layer is None or tuple(layer.weight.shape) != record.dense_shape:
            raise ArtifactError(
                f"`{path}` factorises `{record.name}`, which is no such layer in `{manifest.architecture.label}`",
                hint="check --arch, and that timm and torchvision have the versions it was made with",
            )
        if not can_have(layer, record.name, record.scheme, record.ranks):
            raise ArtifactError(
                f"`{path}` gives `{record.name}` a form that it cannot have: {record.scheme} of rank "
                f"{', '.join(map(str, record.ranks)) or 'none'}",
                hint="compress again",
            )
        replace_module_(model, record.name, build_layer(layer, record.scheme, record.ranks))
