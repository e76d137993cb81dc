"""The size of a perturbation."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]


def perturbation_sizes(delta: Float[Tensor, "n c h w"], norm: Norm) -> Float[Tensor, "n"]:
    """Returns ‖δ‖_∞, ‖δ‖₂ or ‖δ‖₁ of each image's perturbation, in pixel units of [0, 1] images."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().sum(1)
