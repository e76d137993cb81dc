"""The metric that a truncation is best in."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """Second moments of what a layer does to some images; without one the weights alone count.

    Attributes:
        output_gram: W (C + λI) Wᵀ of each group, see `damped_output_gram`.
        input_gram: C + λI of the patches that the kernel is applied to, ordered (channel, position in the kernel), on
            the same scale; None where it is not needed, or would be too large.
    """

    output_gram: Float[Tensor, "g m m"]
    input_gram: Float[Tensor, "d d"] | None = None
