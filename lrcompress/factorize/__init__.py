"""Stage 3: a model and a plan become a low-rank model."""

from lrcompress.factorize.describe import condition_numbers, describe_layers
from lrcompress.factorize.factorize import factorize, factorize_for_training, fold_
from lrcompress.factorize.spectra import LayerSpectra, layer_spectra, shipped_spectra

__all__ = [
    "LayerSpectra",
    "condition_numbers",
    "describe_layers",
    "factorize",
    "factorize_for_training",
    "fold_",
    "layer_spectra",
    "shipped_spectra",
]
