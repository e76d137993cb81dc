"""From dense layers to those that DLRT trains."""

from typing import TypeGuard

from torch import nn

from lrcompress.linalg import Factors
from lrcompress.nn.factored import FactoredConv2d, FactoredLayer, FactoredLinear
from lrcompress.nn.plain import PlainLayer


def is_trainable(layer: PlainLayer) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether DLRT trains the layer: linear ones and ungrouped two-dimensional convolutions, in the matrix form."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def factored_from_dense(layer: nn.Linear | nn.Conv2d, factors: Factors) -> FactoredLayer:
    """Returns the layer with its weight replaced by U S Vᵀ."""
    return FactoredConv2d(layer, factors) if isinstance(layer, nn.Conv2d) else FactoredLinear(layer, factors)
