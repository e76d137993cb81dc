"""Perturbations in ℓp balls. Tensors in, tensors out."""

from lrcompress.perturb.draws import normal, uniform
from lrcompress.perturb.norms import Norm, format_radius, perturbation_sizes
from lrcompress.perturb.steps import ascend, project, random_start, seeded_start

__all__ = [
    "Norm",
    "ascend",
    "format_radius",
    "normal",
    "perturbation_sizes",
    "project",
    "random_start",
    "seeded_start",
    "uniform",
]
