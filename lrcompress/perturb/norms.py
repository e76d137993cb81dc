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


def format_radius(eps: float, norm: str) -> str:
    """Returns a radius as people write it: 8/255 where it is one."""
    if norm == "linf" and abs(eps * 255 - round(eps * 255)) < 1e-6 and eps > 0:
        return f"{round(eps * 255)}/255"
    return f"{eps:.4g}"
