"""Matrices only: factorisations, bases, unfoldings and the conditioning penalty. Tensors in, tensors out."""

from lrcompress.linalg.conditioning import condition_number, conditioning_penalty, stable_rank
from lrcompress.linalg.qr import extend_basis
from lrcompress.linalg.svd import (
    Factors,
    damped_output_gram,
    singular_values,
    truncate_core,
    truncated_svd,
    truncation_rank,
)
from lrcompress.linalg.unfold import fold_kernel, unfold_kernel

__all__ = [
    "Factors",
    "condition_number",
    "conditioning_penalty",
    "damped_output_gram",
    "extend_basis",
    "fold_kernel",
    "singular_values",
    "stable_rank",
    "truncate_core",
    "truncated_svd",
    "truncation_rank",
    "unfold_kernel",
]
