"""Can a plan that was read from a file, and may have been edited, be executed on this network?"""

from dataclasses import replace

import torch
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.plan.layers import Candidate, find_layers
from lrcompress.plan.plan import DENSE, CompressionPlan, LayerPlan
from lrcompress.schemes import find_scheme


def check_plan(
    plan: CompressionPlan, model: nn.Module, *, input_size: tuple[int, int, int], sha256: str
) -> CompressionPlan:
    """Returns the plan with the parameters of its ranks, if it fits a network: same checkpoint, same layers, ranks.

    Args:
        plan: what is to be done.
        model: the dense network.
        input_size: (channels, height, width) of its images.
        sha256: hash of the checkpoint it came from.

    Raises:
        OptionError: if it does not fit, with the layer and what is possible there.
    """
    check_source(plan, sha256)
    candidates = {
        candidate.name: candidate
        for candidate in find_layers(model, input_size, include_first=True, include_classifier=True)
    }
    planned = [layer.name for layer in plan.layers]
    if differing := sorted(set(candidates).symmetric_difference(planned)) or _repeated(planned):
        raise OptionError(
            f"the plan and the network differ in the layer `{differing[0]}`",
            hint="keep every layer of the plan; edit its scheme and ranks only",
        )
    return replace(plan, layers=tuple(_check_layer(layer, candidates[layer.name]) for layer in plan.layers))


def check_source(plan: CompressionPlan, sha256: str) -> None:
    """Raises `OptionError` if a plan was made for another checkpoint than that of this hash."""
    if plan.source_sha256 != sha256:
        raise OptionError(
            "the plan was made for another checkpoint: its SHA-256 differs", hint="make the plan again for this one"
        )


def _check_layer(layer: LayerPlan, candidate: Candidate) -> LayerPlan:
    if layer.dense_shape != candidate.weight_shape:
        raise OptionError(
            f"the plan has `{layer.name}` with shape {layer.dense_shape}, the network with {candidate.weight_shape}",
            hint="make the plan again for this checkpoint",
        )
    if layer.scheme == DENSE:
        return replace(layer, parameters=None, reason=layer.reason or "dense in the plan")
    if candidate.reason or candidate.layer is None:
        raise OptionError(f"`{layer.name}` cannot be factorised: {candidate.reason}", hint="plan it as dense")
    if torch.count_nonzero(candidate.layer.weight) == 0:
        raise OptionError(f"all weights of `{layer.name}` are zero", hint="plan it as dense")
    scheme = find_scheme(layer.scheme)
    if not scheme.fits(candidate.layer, layer.name):
        raise OptionError(f"`{layer.name}` cannot have the scheme {layer.scheme}", hint="the scheme matrix, or dense")
    full = scheme.largest_ranks(candidate.layer)
    shown = ", ".join(map(str, layer.ranks)) or "none"
    if len(layer.ranks) != len(full):
        raise OptionError(
            f"`{layer.name}` has the ranks {shown}", hint=f"the scheme {layer.scheme} takes {len(full)} of them"
        )
    in_range = all(1 <= rank <= largest for rank, largest in zip(layer.ranks, full, strict=True))
    parameters = int(scheme.parameters(candidate.layer, torch.tensor([layer.ranks]))[0]) if in_range else 0
    if not in_range or parameters >= candidate.parameters:
        possible = torch.arange(1, max(full) + 1)[:, None].clamp_max(torch.tensor(full))
        useful = int((scheme.parameters(candidate.layer, possible) < candidate.parameters).sum())
        hint = (
            f"ranks up to about {useful} remove parameters"
            if useful
            else "no rank removes parameters: plan it as dense"
        )
        raise OptionError(f"`{layer.name}` cannot have rank {shown}", hint=hint)
    return replace(layer, parameters=parameters, dense_parameters=candidate.parameters)


def _repeated(names: list[str]) -> list[str]:
    return [name for index, name in enumerate(names) if name in names[:index]]
