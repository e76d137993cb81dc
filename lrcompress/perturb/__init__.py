"""Perturbations in ℓp balls. Tensors in, tensors out."""

from lrcompress.perturb.draws import normal, uniform
from lrcompress.perturb.norms import Norm, perturbation_sizes
from lrcompress.perturb.steps import ascend, project, random_start, seeded_start

__all__ = ["Norm", "ascend", "normal", "perturbation_sizes", "project", "random_start", "seeded_start", "uniform"]
