"""Blocks of images: what is in memory at once, what is saved at once, and what one process does at a time."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate.

    Attributes:
        role: "baseline" or "compressed".
        model: takes images in [0, 1].
        sha256: of its file.
    """

    role: str
    model: nn.Module
    sha256: str


@dataclass(frozen=True)
class Block:
    """Images with the models' answers to them.

    Attributes:
        number: of the block, from 0.
        first: number of its first image in the whole set.
        pixels: the clean images.
        labels: their classes.
    """

    number: int
    first: int
    pixels: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]

    def hashes(self) -> list[str]:
        """Returns a hash of each image, as bytes of 8 bits, with its label."""
        pixels = (255 * self.pixels).round().to(torch.uint8).contiguous().cpu().numpy()
        labels = self.labels.tolist()
        return [
            hashlib.sha256(image.tobytes() + str(label).encode()).hexdigest()[:16]
            for image, label in zip(pixels, labels, strict=True)
        ]


@dataclass(frozen=True)
class KnownBlock:
    """A block, and what one model says to its clean images.

    Attributes:
        block: the images.
        logits: the model's answers.
        clean: whether they are right.
    """

    block: Block
    logits: Float[Tensor, "n k"]
    clean: Bool[Tensor, "n"]


@dataclass
class ModelBlock:
    """What one model did on one block, as JSON types, in the order of the images.

    Attributes:
        clean: whether it was right.
        robust: by attack, for each radius and image, whether it was right and withstood up to that radius.
        distances: by attack, sizes of the smallest perturbations found; None where nothing was.
        silent: by attack, images that stood while the gradient was zero in every entry.
        gradient_norms: of the loss by the pixels.
        margins: first-order distance to the nearest other class, of the images that it knows.
        corrupted: by corruption, for each severity and image, whether it was right.
        certified: certified radii of the smoothed classifier; None where it abstains or is wrong.
        seconds: wall time.
        forward_passes: images that were put through the model.
        backward_passes: images whose gradient was computed.
    """

    clean: list[bool] = field(default_factory=list)
    robust: dict[str, list[list[bool]]] = field(default_factory=dict)
    distances: dict[str, list[float | None]] = field(default_factory=dict)
    silent: dict[str, int] = field(default_factory=dict)
    gradient_norms: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    corrupted: dict[str, list[list[bool]]] = field(default_factory=dict)
    certified: list[float | None] = field(default_factory=list)
    seconds: float = 0.0
    forward_passes: int = 0
    backward_passes: int = 0


@dataclass
class BlockOutcome:
    """What all models did on one block, as JSON types.

    Attributes:
        number: of the block.
        labels: the images' classes.
        hashes: one of each image and its label.
        models: by role.
        transferred: by "source→target", for each radius and image, whether the target was right on what was made
            against the source.
        doubts: what probes of the attacks found, as findings.
        examples: images to look at.
    """

    number: int
    labels: list[int]
    hashes: list[str]
    models: dict[str, ModelBlock] = field(default_factory=dict)
    transferred: dict[str, list[list[bool]]] = field(default_factory=dict)
    doubts: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BlockOutcome":
        """Returns what `to_json` gave."""
        return cls(**{**values, "models": {role: ModelBlock(**one) for role, one in values["models"].items()}})
