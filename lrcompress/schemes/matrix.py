"""The matrix form: out × (in · kernel), one matrix per group. The first layer keeps the kernel, the second is 1×1."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from lrcompress.linalg import PrincipalBasis, merge_spectra, principal_basis, tail_energies, two_factors
from lrcompress.nn import (
    ConvGeometry,
    LowRankLayer,
    LowRankLinear,
    MatrixConv,
    PlainLayer,
    is_depthwise,
    weight_matrices,
)
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


class MatrixDecomposition(Decomposition):
    """The singular values of all groups together, and a basis of each group."""

    def __init__(self, layer: PlainLayer, metric: Metric | None) -> None:
        self.layer = layer
        matrices = weight_matrices(layer)
        grams = [None] * len(matrices) if metric is None else metric.output_gram
        self.bases = [principal_basis(W, output_gram=G) for W, G in zip(matrices, grams, strict=True)]
        energies = [basis.energies for basis in self.bases]
        self.tails = tail_energies(torch.stack(energies).sum(0)).cpu()  # where ranks are chosen
        self.sigma = merge_spectra(energies).sqrt() if metric is None else None
        self.bases = [_in_type(basis, matrices.dtype) for basis in self.bases]

    @override
    def ranks(self) -> Int[Tensor, "k 1"]:
        return one_mode(len(self.tails) - 1)

    @override
    def squared_errors(self, ranks: Int[Tensor, "k 1"]) -> Float[Tensor, "k"]:
        return self.tails[ranks[:, 0]] / self.tails[0]

    @override
    def dense_spectrum(self) -> Float[Tensor, "k"] | None:
        return self.sigma

    @override
    def fill_(self, low_rank: LowRankLinear | MatrixConv, ranks: tuple[int, ...]) -> None:
        pairs = [
            two_factors(W, basis.basis[:, : ranks[0]], of_outputs=basis.of_outputs)
            for W, basis in zip(weight_matrices(self.layer), self.bases, strict=True)
        ]
        expand = _stack([pair[0] for pair in pairs])  # group, output, rank
        reduce = _stack([pair[1] for pair in pairs])  # group, rank, input × kernel
        with torch.no_grad():
            low_rank.expand.weight.copy_(expand.reshape(low_rank.expand.weight.shape))
            if isinstance(low_rank, MatrixConv) and low_rank.transposed:
                taps = low_rank.reduce.weight[0, 0].numel()
                reduce = reduce.unflatten(2, (-1, taps)).transpose(1, 2)  # group, input, rank, kernel
            low_rank.reduce.weight.copy_(reduce.reshape(low_rank.reduce.weight.shape))

    @override
    def keep_(self, largest: Sequence[int]) -> int:
        self.bases = [basis._replace(basis=basis.basis[:, : largest[0]].clone()) for basis in self.bases]
        return sum(basis.basis.nbytes for basis in self.bases)


class Matrix(Scheme):
    """Fits every linear layer and every convolution but depthwise ones."""

    name: ClassVar[str] = "matrix"
    modes: ClassVar[int | None] = 1

    @override
    def fits(self, layer: PlainLayer, name: str) -> bool:
        return not is_depthwise(layer)

    @override
    def largest_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        return (min(weight_matrices(layer).shape[1:]),)

    @override
    def decompose(self, layer: PlainLayer, metric: Metric | None = None) -> MatrixDecomposition:
        return MatrixDecomposition(layer, metric)

    @override
    def parameters(self, layer: PlainLayer, ranks: Int[Tensor, "k 1"]) -> Int[Tensor, "k"]:
        outputs, inputs, taps = channels(layer)
        return ranks[:, 0] * (outputs + inputs * taps)

    @override
    def macs(self, layer: PlainLayer, ranks: Int[Tensor, "k 1"], positions: Positions) -> Int[Tensor, "k"]:
        outputs, inputs, taps = channels(layer)
        transposed = not isinstance(layer, nn.Linear) and layer.transposed
        reducing = positions.inputs if transposed else positions.outputs
        return ranks[:, 0] * (positions.outputs * outputs + reducing * inputs * taps)

    @override
    def build(self, layer: PlainLayer, ranks: tuple[int, ...]) -> LowRankLayer:
        bias, (rank,) = layer.bias is not None, ranks
        if isinstance(layer, nn.Linear):
            return build_like(layer, LowRankLinear, layer.in_features, layer.out_features, rank, bias=bias)
        geometry = ConvGeometry.of(layer)
        return build_like(layer, MatrixConv, layer.in_channels, layer.out_channels, rank, geometry=geometry, bias=bias)

    @override
    def truncated_matrices(self, layer: PlainLayer) -> Sequence[Float[Tensor, "m n"]]:
        return weight_matrices(layer).unbind()

    @override
    def spectrum(self, low_rank: LowRankLinear | MatrixConv) -> Float[Tensor, "k"]:
        if isinstance(low_rank, LowRankLinear):
            return product_spectrum(low_rank.expand.weight, low_rank.reduce.weight)
        groups, reduce = low_rank.groups, low_rank.reduce.weight
        if low_rank.transposed:
            reduce = reduce.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
        else:
            reduce = reduce.unflatten(0, (groups, -1)).flatten(2)
        expand = low_rank.expand.weight.flatten(1).unflatten(0, (groups, -1))
        return merge_spectra([product_spectrum(left, right) for left, right in zip(expand, reduce, strict=True)])


def _stack(parts: list[Float[Tensor, "m n"]]) -> Float[Tensor, "g m n"]:
    """Returns the groups' matrices as one tensor, a view where there is only one group."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _in_type(basis: PrincipalBasis, dtype: torch.dtype) -> PrincipalBasis:
    return basis._replace(basis=basis.basis.to(dtype))
