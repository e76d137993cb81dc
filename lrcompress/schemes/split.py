"""The fused projection to q, k and v as three matrices, each of a rank of its own."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from lrcompress.linalg import merge_spectra, principal_basis, tail_energies, two_factors
from lrcompress.nn import LowRankLayer, PlainLayer, SplitLowRankLinear
from lrcompress.schemes.metric import Metric
from lrcompress.schemes.scheme import Decomposition, Positions, Scheme, build_like, product_spectrum

PARTS = 3
FUSED_NAMES = ("qkv", "in_proj", "to_qkv", "c_attn")


class SplitDecomposition(Decomposition):
    """The three parts' singular values in one order: each step gives one rank more to the part that gains most."""

    def __init__(self, layer: nn.Linear, metric: Metric | None) -> None:
        self.parts = _parts(layer)
        width = self.parts.shape[1]
        grams = [None if metric is None else _block(metric.output_gram[0], part, width) for part in range(PARTS)]
        bases = [principal_basis(W, output_gram=G) for W, G in zip(self.parts, grams, strict=True)]
        energies = torch.stack([basis.energies for basis in bases])  # part, rank
        self.sigma = merge_spectra(energies.unbind()).sqrt() if metric is None else None
        self.of_outputs = bases[0].of_outputs
        self.bases = [basis.basis.to(layer.weight.dtype) for basis in bases]
        self.tails = torch.stack([tail_energies(part) for part in energies]).cpu()
        # One rank each first, then all others in descending order; a stable order keeps each part's own.
        rest = energies[:, 1:].flatten().sort(descending=True, stable=True).indices // (energies.shape[1] - 1 or 1)
        taken = torch.nn.functional.one_hot(rest, PARTS).cumsum(0) + 1
        self.steps = torch.cat([torch.ones(1, PARTS, dtype=taken.dtype), taken])

    @override
    def ranks(self) -> Int[Tensor, "k 3"]:
        return self.steps

    @override
    def squared_errors(self, ranks: Int[Tensor, "k 3"]) -> Float[Tensor, "k"]:
        return self.tails.gather(1, ranks.T).sum(0) / self.tails[:, 0].sum()

    @override
    def dense_spectrum(self) -> Float[Tensor, "k"] | None:
        return self.sigma

    @override
    def fill_(self, low_rank: SplitLowRankLinear, ranks: tuple[int, ...]) -> None:
        with torch.no_grad():
            reduced = low_rank.reduce.weight.split(low_rank.ranks)
            for W, basis, rank, part, target in zip(
                self.parts, self.bases, ranks, low_rank.expand, reduced, strict=True
            ):
                expand, reduce = two_factors(W, basis[:, :rank], of_outputs=self.of_outputs)
                part.weight.copy_(expand)
                target.copy_(reduce)

    @override
    def keep_(self, largest: Sequence[int]) -> int:
        self.bases = [basis[:, :rank].clone() for basis, rank in zip(self.bases, largest, strict=True)]
        return sum(basis.nbytes for basis in self.bases)


class Split(Scheme):
    """Fits a linear layer that is called qkv, or another of its names, and gives three parts of one width."""

    name: ClassVar[str] = "split"
    modes: ClassVar[int | None] = PARTS

    @override
    def fits(self, layer: PlainLayer, name: str) -> bool:
        fused = name.rpartition(".")[2] in FUSED_NAMES
        return fused and isinstance(layer, nn.Linear) and layer.out_features % PARTS == 0

    @override
    def largest_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        m, n = layer.weight.shape
        return (min(m // PARTS, n),) * PARTS

    @override
    def decompose(self, layer: PlainLayer, metric: Metric | None = None) -> SplitDecomposition:
        assert isinstance(layer, nn.Linear)  # see `fits`
        return SplitDecomposition(layer, metric)

    @override
    def parameters(self, layer: PlainLayer, ranks: Int[Tensor, "k 3"]) -> Int[Tensor, "k"]:
        m, n = layer.weight.shape
        return ranks.sum(1) * (m // PARTS + n)

    @override
    def macs(self, layer: PlainLayer, ranks: Int[Tensor, "k 3"], positions: Positions) -> Int[Tensor, "k"]:
        return positions.outputs * self.parameters(layer, ranks)

    @override
    def build(self, layer: PlainLayer, ranks: tuple[int, ...]) -> LowRankLayer:
        m, n = layer.weight.shape
        return build_like(layer, SplitLowRankLinear, n, m, ranks, bias=layer.bias is not None)

    @override
    def truncated_matrices(self, layer: PlainLayer) -> Sequence[Float[Tensor, "m n"]]:
        assert isinstance(layer, nn.Linear)
        return _parts(layer).unbind()

    @override
    def spectrum(self, low_rank: SplitLowRankLinear) -> Float[Tensor, "k"]:
        parts = low_rank.reduce.weight.split(low_rank.ranks)
        return merge_spectra(
            [product_spectrum(part.weight, rows) for part, rows in zip(low_rank.expand, parts, strict=True)]
        )


def _parts(layer: nn.Linear) -> Float[Tensor, "part m n"]:
    return layer.weight.detach().unflatten(0, (PARTS, -1))


def _block(gram: Float[Tensor, "m m"], part: int, width: int) -> Float[Tensor, "w w"]:
    rows = slice(part * width, (part + 1) * width)
    return gram[rows, rows]
