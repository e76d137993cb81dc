"""The low-rank layers that are shipped: plain layers in a row, which every compiler and exporter knows."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.nn.geometry import ConvGeometry


class LowRankLayer(nn.Module, ABC):
    """A layer in the place of a dense one: `reduce`, for some schemes `core`, and `expand`, in a row."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The weight of the dense layer this one is equal to, in that layer's shape and the factors' type."""

    @property
    @abstractmethod
    def bias(self) -> Tensor | None:
        """The bias, if there is one."""

    @property
    @abstractmethod
    def ranks(self) -> tuple[int, ...]:
        """The ranks, as plans have them."""


class LowRankLinear(LowRankLayer):
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

    @property
    def ranks(self) -> tuple[int, ...]:
        """The inner width."""
        return (self.expand.in_features,)

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Returns expand(reduce(x))."""
        return self.expand(self.reduce(x))


class SplitLowRankLinear(LowRankLayer):
    """A linear layer whose output is in parts, each of a rank of its own: the fused q, k and v of an attention.

    Args:
        in_features: n, the width of the input.
        out_features: m, the width of the output, a multiple of the number of ranks.
        ranks: of each part.
        bias: whether the layer has a bias.
        factory: device and dtype, as for `nn.Linear`.
    """

    expand: Any  # a list of linear layers

    def __init__(
        self, in_features: int, out_features: int, ranks: Sequence[int], *, bias: bool, **factory: Any
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        width = out_features // len(ranks)
        self.reduce = nn.Linear(in_features, sum(ranks), bias=False, **factory)
        self.expand = nn.ModuleList(nn.Linear(rank, width, bias=bias, **factory) for rank in ranks)

    @property
    def weight(self) -> Float[Tensor, "m n"]:
        """The products of both factors of each part, one below the other."""
        parts = self.reduce.weight.split(self.ranks)
        return torch.cat([expand.weight @ part for expand, part in zip(self.expand, parts, strict=True)])

    @property
    def bias(self) -> Tensor | None:
        """The biases of all parts in one, if there are any."""
        biases = [expand.bias for expand in self.expand]
        return None if biases[0] is None else torch.cat(biases)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The inner width of each part."""
        return tuple(expand.in_features for expand in self.expand)

    @classmethod
    def of(cls, parts: Sequence[LowRankLinear]) -> "SplitLowRankLinear":
        """Returns the layer whose output is those of some layers of one input, one after the other."""
        width, weight, bias = parts[0].in_features, parts[0].expand.weight, parts[0].bias
        total, ranks = sum(part.out_features for part in parts), [part.ranks[0] for part in parts]
        split = cls(width, total, ranks, bias=bias is not None, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            split.reduce.weight.copy_(torch.cat([part.reduce.weight for part in parts]))
            for expand, part in zip(split.expand, parts, strict=True):
                expand.load_state_dict(part.expand.state_dict())
        return split

    def split(self) -> list[LowRankLinear]:
        """Returns its parts as layers of their own: the inverse of `of`."""
        parts = []
        with torch.no_grad():
            for expand, reduce in zip(self.expand, self.reduce.weight.split(self.ranks), strict=True):
                kind = {"device": reduce.device, "dtype": reduce.dtype}
                bias = expand.bias is not None
                part = LowRankLinear(self.in_features, expand.out_features, len(reduce), bias=bias, **kind)
                part.reduce.weight.copy_(reduce)
                part.expand.load_state_dict(expand.state_dict())
                parts.append(part)
        return parts

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Returns expand(reduce(x)), part by part."""
        parts = self.reduce(x).split(self.ranks, dim=-1)
        return torch.cat([expand(part) for expand, part in zip(self.expand, parts, strict=True)], dim=-1)


class LowRankConv(LowRankLayer):
    """A convolution as two or three plain ones in a row; each scheme has a subclass that says which.

    It has the attributes by which parents and tools ask a convolution for its geometry.
    """

    reduce: Any  # convolutions of as many axes as the dense one has
    core: Any
    expand: Any

    def __init__(self, in_channels: int, out_channels: int, geometry: ConvGeometry) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, geometry.groups
        self.kernel_size, self.stride, self.padding = geometry.kernel_size, geometry.stride, geometry.padding
        self.dilation, self.padding_mode = geometry.dilation, geometry.padding_mode
        self.transposed, self.output_padding = geometry.transposed, geometry.output_padding

    @property
    def bias(self) -> Tensor | None:
        """The bias, if there is one."""
        return self.expand.bias

    def forward(self, x: Tensor) -> Tensor:
        """Returns the result of all convolutions in a row."""
        for convolution in self.children():
            x = convolution(x)
        return x


class MatrixConv(LowRankConv):
    """k×k to r channels per group, then 1×1: the matrix form of a convolution, transposed and grouped ones too.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        rank: the number of channels in between, per group.
        geometry: kernel size, stride, padding, dilation, groups.
        bias: whether the layer has a bias.
        factory: device and dtype, as for `nn.Conv2d`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, rank: int, *, geometry: ConvGeometry, bias: bool, **factory: Any
    ) -> None:
        super().__init__(in_channels, out_channels, geometry)
        inner = rank * geometry.groups
        self.reduce = geometry.make(in_channels, inner, bias=False, **factory)
        self.expand = geometry.unit().make(inner, out_channels, bias=bias, **factory)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The channels in between, per group."""
        return (self.expand.in_channels // self.groups,)

    @property
    def weight(self) -> Float[Tensor, "a b *kernel"]:
        """The kernel of both convolutions in one."""
        expand = self.expand.weight.flatten(1).unflatten(0, (self.groups, -1))  # group, output, rank
        if not self.transposed:
            reduce = self.reduce.weight.flatten(1).unflatten(0, (self.groups, -1))  # group, rank, input × kernel
            return (expand @ reduce).flatten(0, 1).unflatten(1, (-1, *self.kernel_size))
        reduce = self.reduce.weight.unflatten(0, (self.groups, -1))  # group, input, rank, kernel
        return torch.einsum("gor,gir...->gio...", expand, reduce).flatten(0, 1)


class SpatialConv(LowRankConv):
    """A convolution along the first axis to r channels, then one along the other axes: k×1, then 1×k.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        rank: the number of channels in between.
        geometry: kernel size, stride, padding, dilation; ungrouped, of two or three axes.
        bias: whether the layer has a bias.
        factory: device and dtype, as for `nn.Conv2d`.

    Source: Jaderberg et al. 2014 (arXiv 1405.3866), scheme 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, rank: int, *, geometry: ConvGeometry, bias: bool, **factory: Any
    ) -> None:
        super().__init__(in_channels, out_channels, geometry)
        first, others = range(1), range(1, len(geometry.kernel_size))
        self.reduce = geometry.along(first).make(in_channels, rank, bias=False, **factory)
        self.expand = geometry.along(others).make(rank, out_channels, bias=bias, **factory)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The channels in between."""
        return (self.expand.in_channels,)

    @property
    def weight(self) -> Float[Tensor, "o i *kernel"]:
        """The kernel of both convolutions in one."""
        reduce, expand = self.reduce.weight.flatten(2), self.expand.weight.flatten(2)
        kernel = torch.einsum("orq,rip->oipq", expand, reduce).flatten(2)
        return kernel.unflatten(2, self.kernel_size)


class TuckerConv(LowRankConv):
    """1×1 to r_I channels, k×k to r_O channels, 1×1 to the output channels (left out where r_O is their number).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        ranks: (r_O, r_I).
        geometry: kernel size, stride, padding, dilation; ungrouped.
        bias: whether the layer has a bias.
        factory: device and dtype, as for `nn.Conv2d`.

    Source: Kim et al. 2016 (arXiv 1511.06530), Tucker-2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ranks: Sequence[int],
        *,
        geometry: ConvGeometry,
        bias: bool,
        **factory: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, geometry)
        output_rank, input_rank = ranks
        unit = geometry.unit()
        self.reduce = unit.make(in_channels, input_rank, bias=False, **factory)
        if output_rank == out_channels:
            self.expand = geometry.make(input_rank, out_channels, bias=bias, **factory)
        else:
            self.core = geometry.make(input_rank, output_rank, bias=False, **factory)
            self.expand = unit.make(output_rank, out_channels, bias=bias, **factory)

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r_O, r_I)."""
        output_rank = self.core.out_channels if hasattr(self, "core") else self.out_channels
        return output_rank, self.reduce.out_channels

    @property
    def weight(self) -> Float[Tensor, "o i *kernel"]:
        """The kernel of all convolutions in one."""
        reduce = self.reduce.weight.flatten(1)  # input rank, input
        if not hasattr(self, "core"):
            return torch.einsum("ob...,bi->oi...", self.expand.weight, reduce)
        return torch.einsum("oa,ab...,bi->oi...", self.expand.weight.flatten(1), self.core.weight, reduce)


def dense_weight(layer: LowRankLayer) -> Tensor:
    """Returns the weight of the dense layer that a low-rank one is equal to, its product taken in float64."""
    return copy.deepcopy(layer).double().weight.detach()
