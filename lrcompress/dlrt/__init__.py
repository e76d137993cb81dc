"""Stage 4: rank-adaptive fine-tuning by Dynamical Low-Rank Training (DLRT)."""

from lrcompress.dlrt.adversary import Adversary
from lrcompress.dlrt.diagnosis import is_guessing
from lrcompress.dlrt.distributed import agree, world
from lrcompress.dlrt.held_out import divide_images, doubt_amounts
from lrcompress.dlrt.log import CoreRecord, EpochRecord, FineTuning, TrainingProgress
from lrcompress.dlrt.optimizer import Dlrt
from lrcompress.dlrt.options import DlrtOptions
from lrcompress.dlrt.precision import has_bfloat16
from lrcompress.dlrt.ranks import Circumstances, RankControl
from lrcompress.dlrt.settings import TrainingOptions
from lrcompress.dlrt.step import BasisChange, augment, cut, rotate
from lrcompress.dlrt.training import fine_tune_

__all__ = [
    "Adversary",
    "BasisChange",
    "Circumstances",
    "CoreRecord",
    "Dlrt",
    "DlrtOptions",
    "EpochRecord",
    "FineTuning",
    "RankControl",
    "TrainingOptions",
    "TrainingProgress",
    "agree",
    "augment",
    "cut",
    "divide_images",
    "doubt_amounts",
    "fine_tune_",
    "has_bfloat16",
    "is_guessing",
    "rotate",
    "world",
]
