"""How one layer is cut: the matrix, spatial, Tucker-2 and split forms, what they cost and what error they leave."""

from lrcompress.schemes.metric import Metric
from lrcompress.schemes.scheme import Call, Decomposition, Scheme, count_positions
from lrcompress.schemes.table import SCHEMES, build_layer, can_have, find_scheme, schemes_for

__all__ = [
    "SCHEMES",
    "Call",
    "Decomposition",
    "Metric",
    "Scheme",
    "build_layer",
    "can_have",
    "count_positions",
    "find_scheme",
    "schemes_for",
]
