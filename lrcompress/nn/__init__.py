"""Low-rank layers: the two-factor form that is shipped, and the three-factor form that is trained."""

from lrcompress.nn.convert import dense_matrix, factored_from_dense, is_matrix_layer, low_rank_like, low_rank_matrix
from lrcompress.nn.factored import (
    FactoredConv2d,
    FactoredLayer,
    FactoredLinear,
    count_shipped_parameters,
    factored_layers,
)
from lrcompress.nn.geometry import ConvGeometry
from lrcompress.nn.lowrank import LowRankConv2d, LowRankLinear
from lrcompress.nn.replace import replace_module_

__all__ = [
    "ConvGeometry",
    "FactoredConv2d",
    "FactoredLayer",
    "FactoredLinear",
    "LowRankConv2d",
    "LowRankLinear",
    "count_shipped_parameters",
    "dense_matrix",
    "factored_from_dense",
    "factored_layers",
    "is_matrix_layer",
    "low_rank_like",
    "low_rank_matrix",
    "replace_module_",
]
