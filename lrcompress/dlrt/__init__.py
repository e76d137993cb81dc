"""Stage 4: rank-adaptive fine-tuning by Dynamical Low-Rank Training (DLRT)."""

from lrcompress.dlrt.moments import carry_moments
from lrcompress.dlrt.options import DlrtOptions
from lrcompress.dlrt.step import BasisChange, augment, truncate
from lrcompress.dlrt.training import EpochRecord, FineTuning, TrainingProgress, fine_tune_

__all__ = [
    "BasisChange",
    "DlrtOptions",
    "EpochRecord",
    "FineTuning",
    "TrainingProgress",
    "augment",
    "carry_moments",
    "fine_tune_",
    "truncate",
]
