"""The spatial form: k×1 to r channels, then 1×k. See Note [Nested features] in `linalg.features`."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lrcompress.linalg import fit, merge_spectra, nested_features, tail_energies
from lrcompress.nn import CONVOLUTIONS, ConvGeometry, Convolution, LowRankLayer, PlainLayer, SpatialConv
from lrcompress.schemes.metric import Metric
from lrcompress.schemes.scheme import (
    Decomposition,
    Positions,
    Scheme,
    build_like,
    channels,
    one_mode,
    product_spectrum,
)


class SpatialDecomposition(Decomposition):
    """Features of pairs of an input channel and a row of the kernel."""

    def __init__(self, layer: Convolution, metric: Metric | None) -> None:
        kernel = _rows_and_columns(layer)
        self.nested = nested_features(kernel.flatten(1, 2), input_gram=None if metric is None else metric.input_gram)
        explained = self.nested.coefficients.square().sum((0, 2))
        count = min(explained.numel(), kernel.shape[0] * kernel.shape[3])
        self.tails = tail_energies(explained[:count]).cpu()  # the features beyond explain nothing
        self.sigma = merge_spectra([explained[:count].sqrt()]) if metric is None else None
        self.total = self.nested.total

    @override
    def ranks(self) -> Int[Tensor, "k 1"]:
        return one_mode(len(self.tails) - 1)

    @override
    def squared_errors(self, ranks: Int[Tensor, "k 1"]) -> Float[Tensor, "k"]:
        return self.tails[ranks[:, 0]] / self.total

    @override
    def dense_spectrum(self) -> Float[Tensor, "k"] | None:
        return self.sigma

    @override
    def fill_(self, low_rank: SpatialConv, ranks: tuple[int, ...]) -> None:
        (rank,) = ranks
        expand = fit(self.nested, self.nested.coefficients[:, :rank])
        with torch.no_grad():
            low_rank.reduce.weight.copy_(self.nested.features[:rank].reshape(low_rank.reduce.weight.shape))
            low_rank.expand.weight.copy_(expand.reshape(low_rank.expand.weight.shape))

    @override
    def keep_(self, largest: Sequence[int]) -> int:
        return self.nested.count_bytes()


class Spatial(Scheme):
    """Fits ungrouped two- and three-dimensional convolutions with a kernel wider than one along both parts."""

    name: ClassVar[str] = "spatial"
    modes: ClassVar[int | None] = 1
    needs_input_gram: ClassVar[bool] = True

    @override
    def fits(self, layer: PlainLayer, name: str) -> bool:
        return (
            isinstance(layer, CONVOLUTIONS)
            and layer.groups == 1
            and len(layer.kernel_size) > 1
            and layer.kernel_size[0] > 1
            and max(layer.kernel_size[1:]) > 1
        )

    @override
    def largest_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        outputs, inputs, taps = channels(layer)
        first = layer.weight.shape[2]
        return (min(inputs * first, outputs * taps // first),)

    @override
    def decompose(self, layer: PlainLayer, metric: Metric | None = None) -> SpatialDecomposition:
        assert isinstance(layer, CONVOLUTIONS)  # see `fits`
        return SpatialDecomposition(layer, metric)

    @override
    def parameters(self, layer: PlainLayer, ranks: Int[Tensor, "k 1"]) -> Int[Tensor, "k"]:
        outputs, inputs, taps = channels(layer)
        first = layer.weight.shape[2]
        return ranks[:, 0] * (inputs * first + outputs * taps // first)

    @override
    def macs(self, layer: PlainLayer, ranks: Int[Tensor, "k 1"], positions: Positions) -> Int[Tensor, "k"]:
        outputs, inputs, taps = channels(layer)
        first = layer.weight.shape[2]
        return ranks[:, 0] * (positions.between * inputs * first + positions.outputs * outputs * taps // first)

    @override
    def build(self, layer: PlainLayer, ranks: tuple[int, ...]) -> LowRankLayer:
        assert isinstance(layer, CONVOLUTIONS)
        geometry, bias, (rank,) = ConvGeometry.of(layer), layer.bias is not None, ranks
        return build_like(layer, SpatialConv, layer.in_channels, layer.out_channels, rank, geometry=geometry, bias=bias)

    @override
    def truncated_matrices(self, layer: PlainLayer) -> Sequence[Float[Tensor, "m n"]]:
        assert isinstance(layer, CONVOLUTIONS)
        return [_rows_and_columns(layer).permute(0, 3, 1, 2).flatten(2).flatten(0, 1)]

    @override
    def spectrum(self, low_rank: SpatialConv) -> Float[Tensor, "k"]:
        expand = low_rank.expand.weight.flatten(2).transpose(1, 2).flatten(0, 1)  # output × column, rank
        return product_spectrum(expand, low_rank.reduce.weight.flatten(1))


def _rows_and_columns(layer: Convolution) -> Float[Tensor, "o c p q"]:
    """Returns the kernel with two axes of positions: the first one, and all others."""
    return layer.weight.detach().flatten(3) if layer.weight.ndim > 3 else layer.weight.detach()
