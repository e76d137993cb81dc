"""Between convolution kernels and matrices."""

from jaxtyping import Float
from torch import Tensor


def unfold_kernel(kernel: Float[Tensor, "o i kh kw"]) -> Float[Tensor, "o ikk"]:
    """Returns the kernel as a matrix: one row per output channel, columns ordered (input channel, row, column)."""
    return kernel.flatten(1)


def fold_kernel(matrix: Float[Tensor, "o ikk"], kernel_size: tuple[int, ...]) -> Float[Tensor, "o i kh kw"]:
    """Returns the kernel whose unfolding is `matrix`."""
    return matrix.unflatten(1, (-1, *kernel_size))
