"""The low-rank layers that are shipped: two plain layers in a row, which every compiler and exporter knows."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.linalg import fold_kernel
from lrcompress.nn.geometry import ConvGeometry


class LowRankLinear(nn.Module):
    """x ↦ expand(reduce(x)): a linear layer whose weight is `expand.weight @ reduce.weight`, of the given rank.

    Args:
        in_features: n, the width of the input.
        out_features: m, the width of the output.
        rank: the inner width r.
        bias: whether the layer has a bias.
        factory: device and dtype, as for `nn.Linear`.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, *, bias: bool, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.reduce = nn.Linear(in_features, rank, bias=False, **factory)
        self.expand = nn.Linear(rank, out_features, bias=bias, **factory)

    @property
    def weight(self) -> Float[Tensor, "m n"]:
        """The product of both factors, for parents that read a layer's weight beside calling it."""
        return self.expand.weight @ self.reduce.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, if there is one."""
        return self.expand.bias

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Returns expand(reduce(x))."""
        return self.expand(self.reduce(x))


class LowRankConv2d(nn.Module):
    """A k×k convolution to r channels, then a 1×1 convolution: the matrix form of a low-rank convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        rank: the number of channels in between.
        geometry: kernel size, stride, padding and dilation.
        bias: whether the layer has a bias.
        factory: device and dtype, as for `nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int,
        *,
        geometry: ConvGeometry,
        bias: bool,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, 1
        self.kernel_size, self.stride, self.padding = geometry.kernel_size, geometry.stride, geometry.padding
        self.dilation, self.padding_mode = geometry.dilation, geometry.padding_mode
        self.reduce = nn.Conv2d(
            in_channels,
            rank,
            geometry.kernel_size,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            bias=False,
            padding_mode=geometry.padding_mode,
            **factory,
        )
        self.expand = nn.Conv2d(rank, out_channels, 1, bias=bias, **factory)

    @property
    def weight(self) -> Float[Tensor, "o i kh kw"]:
        """The kernel of both convolutions in one, for parents that read a layer's weight beside calling it."""
        return fold_kernel(self.expand.weight.flatten(1) @ self.reduce.weight.flatten(1), self.kernel_size)

    @property
    def bias(self) -> Tensor | None:
        """The bias, if there is one."""
        return self.expand.bias

    def forward(self, x: Float[Tensor, "*batch i h w"]) -> Float[Tensor, "*batch o oh ow"]:
        """Returns expand(reduce(x))."""
        return self.expand(self.reduce(x))
