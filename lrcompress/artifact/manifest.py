"""What an artifact says of itself. It lies as sorted JSON in the metadata of the safetensors file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from lrcompress.errors import ArtifactError
from lrcompress.models import Architecture, Preprocessing
from lrcompress.plan import LayerRecord
from lrcompress.strict_json import parse_json

SCHEMA_VERSION = 2
# The first one knew one scheme, with one rank per layer.
READABLE_SCHEMAS = frozenset({1, 2})


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: of the whole model, biases and norms included.
        bytes: of its file; for the compressed model in the manifest, of its tensors.
        macs: multiply-accumulate operations for one image.
    """

    parameters: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class Manifest:
    """Everything needed to build, feed and judge a compressed model without its source.

    Attributes:
        architecture: of the uncompressed network.
        preprocessing: input size and statistics.
        num_classes: number of logits.
        class_names: one per class, or none.
        dtype: floating-point type of the stored weights.
        layers: one record per layer with a weight matrix.
        recipe: policy, options and results of the compression.
        source: path, SHA-256, size and reading of the original checkpoint.
        baseline: cost of the original.
        compressed: cost of the compressed model.
        shared: names of tensors that are the same tensor as another one, by name.
        tensors_sha256: of all stored tensors, in the order of their names.
        versions: of the libraries it was made with.
    """

    architecture: Architecture
    preprocessing: Preprocessing
    num_classes: int
    class_names: tuple[str, ...]
    dtype: str
    layers: tuple[LayerRecord, ...]
    recipe: Mapping[str, Any]
    source: Mapping[str, Any]
    baseline: Cost
    compressed: Cost
    shared: Mapping[str, str]
    tensors_sha256: str
    versions: Mapping[str, str]

    def dumps(self) -> str:
        """Returns the manifest as sorted JSON."""
        values = {
            "schema": SCHEMA_VERSION,
            "architecture": asdict(self.architecture),
            "preprocessing": self.preprocessing.to_json(),
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "dtype": self.dtype,
            "layers": [layer.to_json() for layer in self.layers],
            "recipe": dict(self.recipe),
            "source": dict(self.source),
            "baseline": asdict(self.baseline),
            "compressed": asdict(self.compressed),
            "shared": dict(self.shared),
            "tensors_sha256": self.tensors_sha256,
            "versions": dict(self.versions),
        }
        values["manifest_sha256"] = _hash_values(values)
        return json.dumps(values, sort_keys=True, allow_nan=False, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str, path: str) -> "Manifest":
        """Returns the manifest that `dumps` wrote.

        Args:
            text: the JSON.
            path: of the file it was found in, for messages.

        Raises:
            ArtifactError: if it is damaged or of a schema this version does not read.
        """
        try:
            values = parse_json(text)
            schema = values["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"the manifest in `{path}` is damaged: {error}", hint="compress again") from error
        if schema not in READABLE_SCHEMAS:
            raise ArtifactError(
                f"`{path}` has schema {schema}, this program reads {max(READABLE_SCHEMAS)} and older",
                hint="upgrade lrcompress",
            )
        try:
            return cls(
                architecture=Architecture(**values["architecture"]),
                preprocessing=Preprocessing.from_json(values["preprocessing"]),
                num_classes=values["num_classes"],
                class_names=tuple(values["class_names"]),
                dtype=values["dtype"],
                layers=tuple(LayerRecord.from_json(layer) for layer in values["layers"]),
                recipe=values["recipe"],
                source=values["source"],
                baseline=Cost(**values["baseline"]),
                compressed=Cost(**values["compressed"]),
                shared=values["shared"],
                tensors_sha256=values["tensors_sha256"],
                versions=values["versions"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the manifest in `{path}` is damaged: {error}", hint="compress again") from error


def manifest_is_intact(text: str) -> bool:
    """Whether the hash in a manifest's JSON is that of everything else in it."""
    values = json.loads(text)
    return values.pop("manifest_sha256", None) == _hash_values(values)


def _hash_values(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def installed_versions() -> dict[str, str]:
    """Returns the versions of this program and of the libraries that decide what a network computes."""
    return {name: metadata.version(name) for name in ("lrcompress", "timm", "torch", "torchvision")}
