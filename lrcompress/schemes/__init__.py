"""How one layer is cut: the matrix, spatial, Tucker-2 and split forms, what they cost and what error they leave."""

from lrcompress.schemes.metric import Metric
from lrcompress.schemes.scheme import (
    Call,
    Decomposition,
    Positions,
    Scheme,
    count_positions,
    dense_macs,
    dense_parameters,
)
from lrcompress.schemes.table import SCHEMES, build_layer, can_have, find_scheme, schemes_for

__all__ = [
    "SCHEMES",
    "Call",
    "Decomposition",
    "Metric",
    "Positions",
    "Scheme",
    "build_layer",
    "can_have",
    "count_positions",
    "dense_macs",
    "dense_parameters",
    "find_scheme",
    "schemes_for",
]
