"""Layers between their three forms: dense, factored (trained) and low-rank (shipped)."""

from typing import TypeGuard

from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.linalg import Factors, unfold_kernel
from lrcompress.nn.factored import FactoredConv2d, FactoredLayer, FactoredLinear
from lrcompress.nn.geometry import ConvGeometry
from lrcompress.nn.lowrank import LowRankConv2d, LowRankLinear


def is_matrix_layer(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether the layer is a plain `nn.Linear` or ungrouped `nn.Conv2d`, whose weight this version factorises.

    Subclasses are not: they may compute something else with their weight.
    """
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def dense_matrix(layer: nn.Linear | nn.Conv2d) -> Float[Tensor, "m n"]:
    """Returns the weight as a matrix W of shape m×n: m = out, n = in (times kernel height and width)."""
    weight = layer.weight.detach()
    return unfold_kernel(weight) if isinstance(layer, nn.Conv2d) else weight


def factored_from_dense(layer: nn.Linear | nn.Conv2d, factors: Factors) -> FactoredLayer:
    """Returns the layer with its weight replaced by U S Vᵀ."""
    return FactoredConv2d(layer, factors) if isinstance(layer, nn.Conv2d) else FactoredLinear(layer, factors)


def low_rank_like(layer: nn.Linear | nn.Conv2d, rank: int) -> LowRankLinear | LowRankConv2d:
    """Returns a low-rank layer of the same geometry and type, its values not yet set."""
    bias = layer.bias is not None
    kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return LowRankLinear(layer.in_features, layer.out_features, rank, bias=bias, **kind)
    geometry = ConvGeometry.of(layer)
    return LowRankConv2d(layer.in_channels, layer.out_channels, rank, geometry=geometry, bias=bias, **kind)


def low_rank_matrix(layer: LowRankLinear | LowRankConv2d) -> Float[Tensor, "m n"]:
    """Returns the product of both factors in float64: the matrix that the layer applies."""
    expand, reduce = layer.expand.weight.detach().double(), layer.reduce.weight.detach().double()
    return expand.flatten(1) @ reduce.flatten(1)
