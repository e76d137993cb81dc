"""Perturbations in ℓp balls. Tensors in, tensors out."""

from lrcompress.perturb.norms import Norm, perturbation_sizes

__all__ = ["Norm", "perturbation_sizes"]
