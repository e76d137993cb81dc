"""Matrices only: factorisations, bases, unfoldings and the conditioning penalty. Tensors in, tensors out."""

from lrcompress.linalg.conditioning import (
    condition_number,
    conditioning_penalty,
    core_condition_number,
    core_spectrum,
    stable_rank,
)
from lrcompress.linalg.factors import Factors, multiply_core, orthonormal_factors, rotate_core
from lrcompress.linalg.features import NestedFeatures, fit, nested_features
from lrcompress.linalg.qr import extend_basis
from lrcompress.linalg.spectrum import MOST_VALUES, Spectrum, merge_spectra, thin_spectrum
from lrcompress.linalg.svd import (
    PrincipalBasis,
    damped_output_gram,
    gram,
    principal_basis,
    singular_values,
    tail_energies,
    two_factors,
)

__all__ = [
    "MOST_VALUES",
    "Factors",
    "NestedFeatures",
    "PrincipalBasis",
    "Spectrum",
    "condition_number",
    "conditioning_penalty",
    "core_condition_number",
    "core_spectrum",
    "damped_output_gram",
    "extend_basis",
    "fit",
    "gram",
    "merge_spectra",
    "multiply_core",
    "nested_features",
    "orthonormal_factors",
    "principal_basis",
    "rotate_core",
    "singular_values",
    "stable_rank",
    "tail_energies",
    "thin_spectrum",
    "two_factors",
]
