"""How a checkpoint is to be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is to be read where its content leaves a choice.

    Attributes:
        arch: name of the architecture, or factory of one's own; None takes the file's word or the fingerprint.
        arch_arguments: arguments for the architecture's factory, over those that the file gives.
        strict_arch: refuse to choose between several architectures with the same tensors.
        match_by_order: give the tensors to the architecture in their order, whatever they are called.
        weights_key: the key of the state dict inside of the file; None takes timm's order.
        preprocessing: input size and statistics, over those that the file or the framework gives; mean and std with one
            value, or one per channel.
    """

    arch: str | None = None
    arch_arguments: Mapping[str, Any] = field(default_factory=dict)
    strict_arch: bool = False
    match_by_order: bool = False
    weights_key: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
