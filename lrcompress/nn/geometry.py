"""Where a convolution's kernel is applied: everything about it but its channels and its weights."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel size, stride, padding and dilation of a two-dimensional convolution, as `nn.Conv2d` stores them."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    padding_mode: PaddingMode

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "ConvGeometry":
        """Returns the geometry of a layer."""
        padding = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
        return cls(_pair(conv.kernel_size), _pair(conv.stride), padding, _pair(conv.dilation), conv.padding_mode)

    def conv2d(self, x: Float[Tensor, "*batch i h w"], kernel: Float[Tensor, "o i kh kw"]) -> Tensor:
        """Returns x convolved with the kernel, without a bias."""
        if self.padding_mode == "zeros":
            return F.conv2d(x, kernel, None, self.stride, self.padding, self.dilation)
        padded = F.pad(x, self._pad_widths(), mode=self.padding_mode)
        return F.conv2d(padded, kernel, None, self.stride, 0, self.dilation)

    def _pad_widths(self) -> list[int]:
        """Returns the widths (left, right, top, bottom) as `F.pad` takes them."""
        if not isinstance(self.padding, str):
            return [self.padding[1], self.padding[1], self.padding[0], self.padding[0]]
        if self.padding == "valid":
            return [0, 0, 0, 0]
        totals = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        return [totals[1] // 2, totals[1] - totals[1] // 2, totals[0] // 2, totals[0] - totals[0] // 2]


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second
