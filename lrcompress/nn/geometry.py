"""Where a convolution's kernel is applied: everything about it but its channels and its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FUNCTIONS: Any = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED_FUNCTIONS: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class SameConv2d(nn.Conv2d):
    """A convolution that pads by the size of its input so that ceil(size / stride) pixels come out.

    This is the rule of TensorFlow's `padding="SAME"`, and of timm's `Conv2dSame`. It works on each axis alone.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  # torch's name
        widths = same_widths(input.shape[-2:], self.kernel_size, self.stride, self.dilation)
        return F.conv2d(F.pad(input, widths), weight, bias, self.stride, 0, self.dilation, self.groups)


def same_widths(
    size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Returns how far to pad so that ceil(size / stride) positions come out, as `F.pad` takes it: last axis first."""
    widths: list[int] = []
    for length, kernel, step, spread in zip(size, kernel_size, stride, dilation, strict=True):
        total = max((-(-length // step) - 1) * step + (kernel - 1) * spread + 1 - length, 0)
        widths = [total // 2, total - total // 2, *widths]
    return widths


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution of one to three dimensions without its channels, as torch's layers store it.

    Attributes:
        kernel_size: one number per axis, like the others.
        stride: of the kernel.
        padding: per axis, or "valid" or "same"; "same" with a stride is the rule of `SameConv2d`.
        dilation: of the kernel.
        padding_mode: what is padded with.
        groups: of channels that do not mix.
        transposed: whether it is a transposed convolution.
        output_padding: of a transposed convolution.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: PaddingMode
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, conv: Any) -> "ConvGeometry":
        """Returns the geometry of a convolution, or of a low-rank layer in the place of one."""
        padding = conv.padding if isinstance(conv.padding, str) else tuple(conv.padding)
        return cls(
            tuple(conv.kernel_size),
            tuple(conv.stride),
            "same" if isinstance(conv, SameConv2d) else padding,
            tuple(conv.dilation),
            cast(PaddingMode, conv.padding_mode),
            conv.groups,
            conv.transposed,
            tuple(conv.output_padding) if conv.transposed else (),
        )

    def unit(self) -> "ConvGeometry":
        """Returns the geometry of a 1×1 kernel that is applied to every position, with the same groups."""
        ones = (1,) * len(self.kernel_size)
        return ConvGeometry(ones, ones, (0,) * len(ones), ones, "zeros", self.groups)

    def along(self, axes: range) -> "ConvGeometry":
        """Returns what the geometry does along some axes: elsewhere the kernel is one wide, with no stride."""

        def keep(values: tuple[int, ...], other: int) -> tuple[int, ...]:
            return tuple(value if axis in axes else other for axis, value in enumerate(values))

        return replace(
            self,
            kernel_size=keep(self.kernel_size, 1),
            stride=keep(self.stride, 1),
            padding=self.padding if isinstance(self.padding, str) else keep(self.padding, 0),
            dilation=keep(self.dilation, 1),
        )

    def make(self, in_channels: int, out_channels: int, *, bias: bool, **factory: Any) -> nn.Module:
        """Returns a plain layer of this geometry, its values not yet set.

        Args:
            in_channels: of all groups together.
            out_channels: of all groups together.
            bias: whether it has one.
            factory: device and dtype.
        """
        common: dict[str, Any] = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": bias,
            "padding_mode": self.padding_mode,
            **factory,
        }
        kind = len(self.kernel_size) - 1
        if self.transposed:
            extra = {"padding": self.padding, "output_padding": self.output_padding}
            return TRANSPOSED[kind](in_channels, out_channels, **common, **extra)
        if self.padding == "same" and max(self.stride) > 1:
            return SameConv2d(in_channels, out_channels, **common)
        common["padding"] = self.padding
        return CONVOLUTIONS[kind](in_channels, out_channels, **common)

    def apply(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns what a layer of this geometry makes of x with a kernel of torch's layout, and a bias."""
        axes = len(self.kernel_size)
        if self.transposed:
            padding, extra = self.padding, (self.output_padding, self.groups, self.dilation)
            return TRANSPOSED_FUNCTIONS[axes - 1](x, kernel, bias, self.stride, padding, *extra)
        padding: Any = self.padding
        if self.padding_mode != "zeros" or (padding == "same" and max(self.stride) > 1):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._pad_widths(x.shape[-axes:]), mode=mode), 0
        return FUNCTIONS[axes - 1](x, kernel, bias, self.stride, padding, self.dilation, self.groups)

    def _pad_widths(self, size: Sequence[int]) -> list[int]:
        """Returns the widths as `F.pad` takes them: before and after each axis, the last axis first."""
        if self.padding == "same":
            return same_widths(size, self.kernel_size, self.stride, self.dilation)
        if isinstance(self.padding, str):  # "valid"
            return [0, 0] * len(self.kernel_size)
        return [width for padding in reversed(self.padding) for width in (padding, padding)]
