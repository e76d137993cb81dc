"""What became of each layer."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.factorize.spectra import shipped_spectra
from lrcompress.linalg import condition_number, core_spectrum, stable_rank
from lrcompress.memory import release_pages
from lrcompress.nn import (
    LowRankLayer,
    dense_weight,
    expose_,
    factored_layers,
    plain_layer,
    trained_layers,
    twin,
)
from lrcompress.plan import CompressionPlan, LayerRecord
from lrcompress.schemes import find_scheme


def describe_layers(
    dense: nn.Module,
    compressed: nn.Module,
    plan: CompressionPlan,
    *,
    start_kappas: Mapping[str, float] | None = None,
    spectra: Mapping[str, Float[Tensor, "_"]] | None = None,
) -> tuple[LayerRecord, ...]:
    """Returns one record per layer of the plan, measured on the shipped factors in float64.

    Args:
        dense: the uncompressed network.
        compressed: the network after `fold_`, its weights rounded as they are stored.
        plan: what was done.
        start_kappas: κ of the layers before fine-tuning.
        spectra: the singular values of the shipped layers; None computes them, see `shipped_spectra`.
    """
    spectra = shipped_spectra(compressed, plan) if spectra is None else spectra
    records = []
    exposed = expose_(twin(dense))
    for layer in plan.layers:
        if layer.scheme == "dense":
            records.append(LayerRecord(layer.name, layer.kind, layer.dense_shape, "dense", reason=layer.reason))
            continue
        module, original = compressed.get_submodule(layer.name), plain_layer(exposed.get_submodule(layer.name))
        assert isinstance(module, LowRankLayer) and original is not None  # what factorising makes of what it can
        sigma = spectra[layer.name]
        weight = original.weight.detach().double()
        dense_norm = float(torch.linalg.vector_norm(weight))
        error = float(torch.linalg.vector_norm(weight - dense_weight(module))) / dense_norm
        release_pages(original.weight)
        conditioned = find_scheme(layer.scheme).conditioned_spectrum(module, sigma)
        kappa = condition_number(conditioned)
        records.append(
            LayerRecord(
                layer.name,
                layer.kind,
                layer.dense_shape,
                layer.scheme,
                ranks=module.ranks,
                parameters=sum(factor.numel() for factor in module.parameters() if factor.ndim > 1),
                relative_error=error,
                sigma_max=float(conditioned[0]),
                sigma_min=float(conditioned[-1]),
                kappa=kappa if math.isfinite(kappa) else None,  # JSON has no infinity
                stable_rank=stable_rank(sigma),
                norm=float(torch.linalg.vector_norm(sigma)),
                dense_norm=dense_norm,
                start_kappa=(start_kappas or {}).get(layer.name),
            )
        )
    return tuple(records)


def condition_numbers(model: nn.Module) -> dict[str, float]:
    """Returns κ = σ₁/σ_r of every layer that is still in the form U S Vᵀ and whose σ_r is not zero.

    Of a split layer as a whole, as records have it: of the singular values of all its parts.
    """
    kappas = {}
    for name, layer in trained_layers(model).items():
        sigma = torch.cat([core_spectrum(part.conditioned(part.S)) for part in factored_layers(layer).values()])
        kappas[name] = condition_number(sigma.sort(descending=True).values)
    return {name: kappa for name, kappa in kappas.items() if math.isfinite(kappa)}
