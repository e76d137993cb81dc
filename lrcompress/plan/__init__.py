"""Stage 2: a dense model becomes a `CompressionPlan`, the stages' common language."""

from lrcompress.plan.calibrate import measure_metrics
from lrcompress.plan.check import check_plan, check_source
from lrcompress.plan.choices import Choices, Option
from lrcompress.plan.decompose import Decomposer
from lrcompress.plan.layers import Candidate, find_layers
from lrcompress.plan.make import make_plan
from lrcompress.plan.plan import Calibration, CompressionPlan, LayerPlan, LayerRecord
from lrcompress.plan.policy import (
    Budget,
    Energy,
    FullRank,
    RankPolicy,
    Smallest,
    Tolerance,
    TrainingStart,
    UniformRank,
    WholeModel,
    WideStart,
)

__all__ = [
    "Budget",
    "Calibration",
    "Candidate",
    "Choices",
    "CompressionPlan",
    "Decomposer",
    "Energy",
    "FullRank",
    "LayerPlan",
    "LayerRecord",
    "Option",
    "RankPolicy",
    "Smallest",
    "Tolerance",
    "TrainingStart",
    "UniformRank",
    "WholeModel",
    "WideStart",
    "check_plan",
    "check_source",
    "find_layers",
    "make_plan",
    "measure_metrics",
]
