"""What became of each layer."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.linalg import condition_number, stable_rank
from lrcompress.nn import LowRankConv2d, LowRankLinear, dense_matrix, factored_layers, is_matrix_layer, low_rank_matrix
from lrcompress.plan import CompressionPlan, LayerRecord


def describe_layers(
    dense: nn.Module, compressed: nn.Module, plan: CompressionPlan, *, start_kappas: Mapping[str, float] | None = None
) -> tuple[LayerRecord, ...]:
    """Returns one record per layer of the plan, measured on the shipped factors in float64.

    Args:
        dense: the uncompressed network.
        compressed: the network after `fold_`, its weights rounded as they are stored.
        plan: what was done.
        start_kappas: κ of the layers before fine-tuning.
    """
    records = []
    for layer in plan.layers:
        if layer.scheme == "dense":
            records.append(LayerRecord(layer.name, layer.kind, layer.dense_shape, "dense", reason=layer.reason))
            continue
        module = compressed.get_submodule(layer.name)
        assert isinstance(module, LowRankLinear | LowRankConv2d)  # what fold_ makes of every other scheme
        original = dense.get_submodule(layer.name)
        assert is_matrix_layer(original)  # only such layers are replaced
        weight, sigma = dense_matrix(original).double(), _spectrum(module)
        dense_norm = float(torch.linalg.matrix_norm(weight))
        kappa = condition_number(sigma)
        records.append(
            LayerRecord(
                layer.name,
                layer.kind,
                layer.dense_shape,
                "matrix",
                rank=len(sigma),
                relative_error=float(torch.linalg.matrix_norm(weight - low_rank_matrix(module))) / dense_norm,
                sigma_max=float(sigma[0]),
                sigma_min=float(sigma[-1]),
                kappa=kappa if math.isfinite(kappa) else None,  # JSON has no infinity
                stable_rank=stable_rank(sigma),
                norm=float(torch.linalg.vector_norm(sigma)),
                dense_norm=dense_norm,
                start_kappa=(start_kappas or {}).get(layer.name),
            )
        )
    return tuple(records)


def condition_numbers(model: nn.Module) -> dict[str, float]:
    """Returns κ = σ₁/σ_r of every layer that is still in the form U S Vᵀ and whose σ_r is not zero."""
    kappas = {
        name: condition_number(torch.linalg.svdvals(layer.S.detach().double()))
        for name, layer in factored_layers(model).items()
    }
    return {name: kappa for name, kappa in kappas.items() if math.isfinite(kappa)}


def _spectrum(layer: LowRankLinear | LowRankConv2d) -> Float[Tensor, "r"]:
    """Returns the r singular values of expand·reduce in float64, from the triangles of both factors."""
    expand = torch.linalg.qr(layer.expand.weight.detach().double().flatten(1)).R
    reduce = torch.linalg.qr(layer.reduce.weight.detach().double().flatten(1).T).R
    return torch.linalg.svdvals(expand @ reduce.T)
