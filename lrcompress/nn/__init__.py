"""Low-rank layers, what they stand in for, and how they get into a model."""

from lrcompress.nn.attention import (
    CalledMultiheadAttention,
    CalledWindowAttention,
    can_stand_in,
    expose_,
    parents_to_expose,
)
from lrcompress.nn.convert import (
    FactoredSplitLinear,
    TrainedLayer,
    count_shipped_parameters,
    factored,
    trained_layers,
)
from lrcompress.nn.factored import (
    FactoredLayer,
    FactoredLinear,
    FactoredMatrixConv,
    FactoredSpatialConv,
    FactoredTuckerConv,
    factored_layers,
)
from lrcompress.nn.geometry import CONVOLUTIONS, ConvGeometry, Convolution, SameConv2d
from lrcompress.nn.lowrank import (
    LowRankConv,
    LowRankLayer,
    LowRankLinear,
    MatrixConv,
    SpatialConv,
    SplitLowRankLinear,
    TuckerConv,
    dense_weight,
)
from lrcompress.nn.plain import (
    PlainLayer,
    is_depthwise,
    is_weight_layer,
    plain_layer,
    weight_from_matrices,
    weight_matrices,
)
from lrcompress.nn.replace import meta_twin, replace_module_, twin

__all__ = [
    "CONVOLUTIONS",
    "CalledMultiheadAttention",
    "CalledWindowAttention",
    "ConvGeometry",
    "Convolution",
    "FactoredLayer",
    "FactoredLinear",
    "FactoredMatrixConv",
    "FactoredSpatialConv",
    "FactoredSplitLinear",
    "FactoredTuckerConv",
    "LowRankConv",
    "LowRankLayer",
    "LowRankLinear",
    "MatrixConv",
    "PlainLayer",
    "SameConv2d",
    "SpatialConv",
    "SplitLowRankLinear",
    "TrainedLayer",
    "TuckerConv",
    "can_stand_in",
    "count_shipped_parameters",
    "dense_weight",
    "expose_",
    "factored",
    "factored_layers",
    "is_depthwise",
    "is_weight_layer",
    "meta_twin",
    "parents_to_expose",
    "plain_layer",
    "replace_module_",
    "trained_layers",
    "twin",
    "weight_from_matrices",
    "weight_matrices",
]
