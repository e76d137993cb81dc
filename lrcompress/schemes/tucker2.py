"""Tucker-2: 1×1 to r_I channels, k×k to r_O, 1×1. See Note [Nested features] in `linalg.features`."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lrcompress.linalg import fit, gram, nested_features
from lrcompress.nn import CONVOLUTIONS, ConvGeometry, Convolution, LowRankLayer, PlainLayer, TuckerConv
from lrcompress.schemes.metric import Metric
from lrcompress.schemes.scheme import Decomposition, Positions, Scheme, build_like, channels, product_spectrum


class TuckerDecomposition(Decomposition):
    """Features of the input channels, and a basis of the outputs: what each pair explains, in a table."""

    def __init__(self, layer: Convolution, metric: Metric | None) -> None:
        kernel = layer.weight.detach().flatten(2)  # output, input, position
        self.nested = nested_features(kernel, input_gram=None if metric is None else metric.input_gram)
        outputs = gram(kernel.flatten(1)) if metric is None else metric.output_gram[0].double()
        energies, vectors = torch.linalg.eigh(outputs)
        self.basis = vectors.flip(1)  # output, output rank
        count = min(kernel.flatten(1).shape)
        self.sigma = energies.clamp_min(0).sqrt().flip(0)[:count] if metric is None else None
        self.core = torch.einsum("oa,oip->aip", self.basis, self.nested.coefficients)
        explained = self.core.square().sum(2).cumsum(0).cumsum(1)
        self.total = max(self.nested.total, float(explained[-1, -1]))
        self.explained = torch.nn.functional.pad(explained.cpu(), (1, 0, 1, 0))  # by (output rank, input rank), from 0

    @override
    def ranks(self) -> Int[Tensor, "k 2"]:
        outputs, inputs = self.explained.shape[0] - 1, self.explained.shape[1] - 1
        return torch.cartesian_prod(torch.arange(1, outputs + 1), torch.arange(1, inputs + 1))

    @override
    def squared_errors(self, ranks: Int[Tensor, "k 2"]) -> Float[Tensor, "k"]:
        explained = self.explained[ranks[:, 0], ranks[:, 1]]
        at_full_rank = (ranks[:, 0] == len(self.explained) - 1) & (ranks[:, 1] == self.explained.shape[1] - 1)
        return torch.where(at_full_rank, 0.0, (1 - explained / self.total).clamp_min(0))

    @override
    def dense_spectrum(self) -> Float[Tensor, "k"] | None:
        return self.sigma

    @override
    def fill_(self, low_rank: TuckerConv, ranks: tuple[int, ...]) -> None:
        output_rank, input_rank = ranks
        with torch.no_grad():
            low_rank.reduce.weight.copy_(self.nested.features[:input_rank].reshape(low_rank.reduce.weight.shape))
            if not hasattr(low_rank, "core"):
                kernel = fit(self.nested, self.nested.coefficients[:, :input_rank])
                low_rank.expand.weight.copy_(kernel.reshape(low_rank.expand.weight.shape))
                return
            core = fit(self.nested, self.core[:output_rank, :input_rank])
            low_rank.core.weight.copy_(core.reshape(low_rank.core.weight.shape))
            low_rank.expand.weight.copy_(self.basis[:, :output_rank].reshape(low_rank.expand.weight.shape))

    @override
    def keep_(self, largest: Sequence[int]) -> int:
        return self.nested.count_bytes() + self.core.nbytes + self.basis.nbytes + self.explained.nbytes


class Tucker2(Scheme):
    """Fits ungrouped convolutions with a kernel wider than one; ranks (r_O, r_I), at most the channels of each side."""

    name: ClassVar[str] = "tucker2"
    modes: ClassVar[int | None] = 2
    needs_input_gram: ClassVar[bool] = True

    @override
    def fits(self, layer: PlainLayer, name: str) -> bool:
        return isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and max(layer.kernel_size) > 1

    @override
    def largest_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        outputs, inputs, _ = channels(layer)
        return outputs, inputs

    @override
    def decompose(self, layer: PlainLayer, metric: Metric | None = None) -> TuckerDecomposition:
        assert isinstance(layer, CONVOLUTIONS)  # see `fits`
        return TuckerDecomposition(layer, metric)

    @override
    def parameters(self, layer: PlainLayer, ranks: Int[Tensor, "k 2"]) -> Int[Tensor, "k"]:
        outputs, inputs, taps = channels(layer)
        output_rank, input_rank = ranks.unbind(1)
        last = torch.where(output_rank < outputs, outputs * output_rank, 0)
        return inputs * input_rank + taps * input_rank * output_rank + last

    @override
    def macs(self, layer: PlainLayer, ranks: Int[Tensor, "k 2"], positions: Positions) -> Int[Tensor, "k"]:
        outputs, inputs, taps = channels(layer)
        output_rank, input_rank = ranks.unbind(1)
        last = torch.where(output_rank < outputs, outputs * output_rank, 0)
        return positions.inputs * inputs * input_rank + positions.outputs * (taps * input_rank * output_rank + last)

    @override
    def build(self, layer: PlainLayer, ranks: tuple[int, ...]) -> LowRankLayer:
        assert isinstance(layer, CONVOLUTIONS)
        geometry, bias = ConvGeometry.of(layer), layer.bias is not None
        return build_like(layer, TuckerConv, layer.in_channels, layer.out_channels, ranks, geometry=geometry, bias=bias)

    @override
    def truncated_matrices(self, layer: PlainLayer) -> Sequence[Float[Tensor, "m n"]]:
        """The output unfolding, out × (in · kernel)."""
        return [layer.weight.detach().flatten(1)]

    @override
    def spectrum(self, low_rank: TuckerConv) -> Float[Tensor, "k"]:
        """Of the output unfolding, r_O × r_I k²."""
        core = low_rank.core.weight if hasattr(low_rank, "core") else low_rank.expand.weight
        mixed = torch.einsum("ab...,bi->ai...", core, low_rank.reduce.weight.flatten(1)).flatten(1)
        if not hasattr(low_rank, "core"):
            return torch.linalg.svdvals(mixed.detach().double())
        return product_spectrum(low_rank.expand.weight.flatten(1), mixed)

    @override
    def conditioned_spectrum(self, low_rank: TuckerConv, spectrum: Float[Tensor, "n"]) -> Float[Tensor, "k"]:
        """Of the input unfolding, r_I × r_O k², where the output side is whole: it has no basis, and no κ."""
        if hasattr(low_rank, "core"):
            return spectrum
        core = low_rank.expand.weight.flatten(2).transpose(0, 1).flatten(1)
        return product_spectrum(low_rank.reduce.weight.flatten(1).T, core)
