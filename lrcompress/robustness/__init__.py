"""Stage 6: attacks on the compressed and the uncompressed model, on the same images, with intervals and checks."""

from lrcompress.robustness.attacks import (
    ATTACKS,
    SUITES,
    AttackSettings,
    attack_strength,
    find_attack,
    parse_eps,
    parse_norm,
)
from lrcompress.robustness.blocks import BlockOutcome, EvaluatedModel
from lrcompress.robustness.evaluate import Work, block_size, evaluate_models, of_these_images
from lrcompress.robustness.evaluation import AttackOutcome, Distances, Evaluation, Finding, ModelOutcome
from lrcompress.robustness.smoothing import Smoothing
from lrcompress.robustness.statistics import McNemar, compare_paired, wilson_interval

__all__ = [
    "ATTACKS",
    "SUITES",
    "AttackOutcome",
    "AttackSettings",
    "BlockOutcome",
    "Distances",
    "EvaluatedModel",
    "Evaluation",
    "Finding",
    "McNemar",
    "ModelOutcome",
    "Smoothing",
    "Work",
    "attack_strength",
    "block_size",
    "compare_paired",
    "evaluate_models",
    "find_attack",
    "of_these_images",
    "parse_eps",
    "parse_norm",
    "wilson_interval",
]
