"""Stage 2: a dense model becomes a `CompressionPlan`, the stages' common language."""

from lrcompress.plan.layers import Candidate, find_layers
from lrcompress.plan.make import make_plan
from lrcompress.plan.plan import CompressionPlan, LayerPlan, LayerRecord
from lrcompress.plan.policy import FullRank, RankPolicy, Spectrum, Tolerance, TrainingStart

__all__ = [
    "Candidate",
    "CompressionPlan",
    "FullRank",
    "LayerPlan",
    "LayerRecord",
    "RankPolicy",
    "Spectrum",
    "Tolerance",
    "TrainingStart",
    "find_layers",
    "make_plan",
]
