"""Adam's moments of a core under a change of basis."""

import torch
from jaxtyping import Float
from torch import Tensor

from lrcompress.dlrt.step import BasisChange


def carry_moments(
    first: Float[Tensor, "r r"], second: Float[Tensor, "r r"], change: BasisChange
) -> tuple[Float[Tensor, "q q"], Float[Tensor, "q q"]]:
    """Returns both moments in the new bases.

    The first moment is an average of gradients and moves as they do, exactly. The second does not transform linearly;
    (left √v right)² is the authors' choice. It leaves the entries of new directions near zero, whose first steps would
    be several times too long, so the median of the old entries is a floor.

    Args:
        first: Adam's exp_avg of the core.
        second: Adam's exp_avg_sq of the core.
        change: from the old bases to the new ones.
    """
    moved = (change.left @ second.sqrt() @ change.right).square()
    return change.left @ first @ change.right, torch.maximum(moved, second.median())
