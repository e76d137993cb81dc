"""Between the low-rank layers that are shipped and those that DLRT trains."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.nn.factored import (
    FactoredLayer,
    FactoredLinear,
    FactoredMatrixConv,
    FactoredSpatialConv,
    FactoredTuckerConv,
    factored_layers,
)
from lrcompress.nn.lowrank import LowRankLayer, LowRankLinear, MatrixConv, SpatialConv, SplitLowRankLinear, TuckerConv


class FactoredSplitLinear(nn.Module):
    """A linear layer whose output is in parts, each with factors of its own: the fused q, k and v of an attention.

    Args:
        low_rank: the layer it is equal to.
    """

    def __init__(self, low_rank: SplitLowRankLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = low_rank.in_features, low_rank.out_features
        self.parts = nn.ModuleList(FactoredLinear(part) for part in low_rank.split())

    @property
    def weight(self) -> Float[Tensor, "m n"]:
        """The weights of all parts, one below the other."""
        return torch.cat([part.weight for part in self.parts])  # pyright: ignore[reportArgumentType]

    @property
    def bias(self) -> Tensor | None:
        """The biases of all parts in one, if there are any."""
        biases = [part.bias for part in self.parts]
        return None if biases[0] is None else torch.cat(biases)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Returns the outputs of all parts, one after the other."""
        return torch.cat([part(x) for part in self.parts], dim=-1)

    def fold(self) -> SplitLowRankLinear:
        """Returns the layer in the form that is shipped."""
        parts = [part.fold() for part in self.parts if isinstance(part, FactoredLinear)]
        return SplitLowRankLinear.of([part for part in parts if isinstance(part, LowRankLinear)])


TrainedLayer = FactoredLayer | FactoredSplitLinear


def factored(low_rank: LowRankLayer) -> TrainedLayer:
    """Returns the layer that DLRT trains and that computes what the low-rank layer does."""
    if isinstance(low_rank, LowRankLinear):
        return FactoredLinear(low_rank)
    if isinstance(low_rank, SplitLowRankLinear):
        return FactoredSplitLinear(low_rank)
    if isinstance(low_rank, MatrixConv):
        return FactoredMatrixConv(low_rank)
    if isinstance(low_rank, SpatialConv):
        return FactoredSpatialConv(low_rank)
    assert isinstance(low_rank, TuckerConv)  # there are no others
    return FactoredTuckerConv(low_rank)


def trained_layers(model: nn.Module) -> dict[str, TrainedLayer]:
    """Returns what stands in the place of the model's dense layers, by their names; split layers as a whole."""
    found: dict[str, TrainedLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, TrainedLayer) and name.rpartition(".parts.")[0] not in found:
            found[name] = module
    return found


def count_shipped_parameters(model: nn.Module) -> int:
    """Returns the number of parameters after folding."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return total + sum(layer.shipped_parameters() - layer.own_parameters() for layer in factored_layers(model).values())
