"""Stage 3: a model and a plan become a low-rank model."""

from lrcompress.factorize.describe import condition_numbers, describe_layers
from lrcompress.factorize.factorize import factorize, factorize_for_training, fold_

__all__ = ["condition_numbers", "describe_layers", "factorize", "factorize_for_training", "fold_"]
