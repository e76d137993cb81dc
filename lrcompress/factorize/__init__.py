"""Stage 3: a model and a plan become a low-rank model."""

from lrcompress.factorize.describe import describe_layers
from lrcompress.factorize.factorize import factorize, fold_

__all__ = ["describe_layers", "factorize", "fold_"]
