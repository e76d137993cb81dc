"""Matrices only: factorisations, bases, unfoldings and the conditioning penalty. Tensors in, tensors out."""

from lrcompress.linalg.conditioning import condition_number, conditioning_penalty, stable_rank
from lrcompress.linalg.features import NestedFeatures, fit, nested_features
from lrcompress.linalg.qr import extend_basis
from lrcompress.linalg.svd import (
    Factors,
    PrincipalBasis,
    damped_output_gram,
    gram,
    principal_basis,
    tail_energies,
    truncate_core,
    truncated_svd,
    truncation_rank,
    two_factors,
)
from lrcompress.linalg.unfold import fold_kernel, unfold_kernel

__all__ = [
    "Factors",
    "NestedFeatures",
    "PrincipalBasis",
    "condition_number",
    "conditioning_penalty",
    "damped_output_gram",
    "extend_basis",
    "fit",
    "fold_kernel",
    "gram",
    "nested_features",
    "principal_basis",
    "stable_rank",
    "tail_energies",
    "truncate_core",
    "truncated_svd",
    "truncation_rank",
    "two_factors",
    "unfold_kernel",
]
