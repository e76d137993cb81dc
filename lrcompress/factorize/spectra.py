"""The singular values of factorised layers, before and after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.linalg import Spectrum, thin_spectrum
from lrcompress.memory import release_pages
from lrcompress.nn import LowRankLayer, expose_, plain_layer, twin
from lrcompress.plan import CompressionPlan, Decomposer
from lrcompress.schemes import find_scheme


@dataclass(frozen=True)
class LayerSpectra:
    """Some singular values of a layer in both models, of the matrix that its scheme truncates.

    Attributes:
        shipped: of the low-rank layer, see `lrcompress.linalg.thin_spectrum`.
        dense: of the uncompressed one, None if they would have cost too much, see `Decomposer.dense_spectrum`.
    """

    shipped: Spectrum
    dense: Spectrum | None

    def to_json(self) -> dict[str, Any]:
        """Returns what a report's record of the layer has of it, as JSON types, without what is not known."""
        known = {"spectrum": self.shipped, "dense_spectrum": self.dense}
        return {key: [list(pair) for pair in values] for key, values in known.items() if values is not None}


def shipped_spectra(compressed: nn.Module, plan: CompressionPlan) -> dict[str, Float[Tensor, "_"]]:
    """Returns all singular values of every factorised layer, by name, in descending order in float64.

    Args:
        compressed: the network after `fold_`, its weights rounded as they are stored.
        plan: what was done.
    """
    spectra = {}
    for name, layer in plan.factorized().items():
        module = compressed.get_submodule(name)
        assert isinstance(module, LowRankLayer)  # what factorising makes
        spectra[name] = find_scheme(layer.scheme).spectrum(module)
    return spectra


def layer_spectra(
    dense: nn.Module,
    plan: CompressionPlan,
    shipped: Mapping[str, Float[Tensor, "_"]],
    *,
    decomposer: Decomposer | None = None,
) -> dict[str, LayerSpectra]:
    """Returns the singular values of every factorised layer in both models, by name, few enough for a report.

    Args:
        dense: the uncompressed network.
        plan: what was done.
        shipped: see `shipped_spectra`.
        decomposer: the one the plan was made with, which has found most of them in passing.
    """
    decomposer, exposed = decomposer or Decomposer(), expose_(twin(dense))
    spectra = {}
    for name, layer in plan.factorized().items():
        original = plain_layer(exposed.get_submodule(name))
        assert original is not None  # what is factorised has one
        found = decomposer.dense_spectrum(name, original, layer.scheme)
        release_pages(original.weight)
        spectra[name] = LayerSpectra(thin_spectrum(shipped[name]), found)
    return spectra
