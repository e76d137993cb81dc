"""The optimiser's moments of a core under a change of basis."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lrcompress.dlrt.step import BasisChange
from lrcompress.linalg import multiply_core

Moments = Literal["floor", "transport", "reset"]


def carry_first(moment: Float[Tensor, "g r s p"], change: BasisChange) -> Float[Tensor, "g q t p"]:
    """Returns an average of gradients in the new bases: it moves as they do, exactly.

    Args:
        moment: Adam's exp_avg, or the momentum of SGD.
        change: from the old bases to the new ones.
    """
    return multiply_core(change.left, moment, change.right)


def carry_second(moment: Float[Tensor, "g r s p"], change: BasisChange, *, floor: bool) -> Float[Tensor, "g q t p"]:
    """Returns an average of squared gradients in the new bases.

    It does not transform linearly; (left √v right)² is the authors' choice. It leaves the entries of new directions
    near zero, whose first steps would be several times too long.

    Args:
        moment: Adam's exp_avg_sq.
        change: from the old bases to the new ones.
        floor: whether no entry is to be smaller than the median of the old ones.
    """
    moved = multiply_core(change.left, moment.sqrt(), change.right).square()
    return torch.maximum(moved, moment.median()) if floor else moved
