"""Replaces layers by low-rank ones."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lrcompress.errors import OptionError
from lrcompress.memory import release_pages, trim_heap
from lrcompress.nn import (
    LowRankLayer,
    PlainLayer,
    SplitLowRankLinear,
    expose_,
    factored,
    is_weight_layer,
    parents_to_expose,
    plain_layer,
    replace_module_,
    trained_layers,
    twin,
)
from lrcompress.plan import CompressionPlan, Decomposer, LayerPlan


def factorize(
    model: nn.Module,
    plan: CompressionPlan,
    *,
    decomposer: Decomposer | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """Returns the low-rank network of a plan as it is shipped; what stays dense shares its tensors with the model.

    Args:
        model: the dense network.
        plan: what is to be done.
        decomposer: the one the plan was made with; what it still holds is not computed again.
        on_progress: called with (layers done, layers in all).

    Raises:
        OptionError: if the plan was made for another network.
    """
    decomposer, low_rank = decomposer or Decomposer(), _exposed(twin(model), plan)
    planned = plan.factorized()
    for done, (name, layer_plan) in enumerate(planned.items(), start=1):
        layer = _plain(low_rank, name, layer_plan)
        replacement = decomposer.low_rank_layer(name, layer, layer_plan.scheme, layer_plan.ranks)
        _set_bias_(replacement, layer.bias)
        replace_module_(low_rank, name, replacement)
        release_pages(layer.weight)
        on_progress(done, len(planned))
    trim_heap()
    return low_rank


def factorize_for_training(
    model: nn.Module,
    plan: CompressionPlan,
    *,
    decomposer: Decomposer | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """Returns the low-rank network of a plan in the form that DLRT trains; `fold_` makes it shippable.

    Args:
        model: the dense network; nothing is shared with the result.
        plan: what is to be done.
        decomposer: the one the plan was made with.
        on_progress: called with (layers done, layers in all).

    Raises:
        OptionError: if the plan was made for another network.
    """
    low_rank = copy.deepcopy(factorize(model, plan, decomposer=decomposer, on_progress=on_progress))
    for name in plan.factorized():
        layer = low_rank.get_submodule(name)
        assert isinstance(layer, LowRankLayer)  # what factorising makes
        replace_module_(low_rank, name, factored(layer))
    return low_rank


def fold_(model: nn.Module) -> nn.Module:
    """Turns every layer that DLRT trains into its shipped form, plain layers in a row, and returns the model."""
    for name, layer in trained_layers(model).items():
        replace_module_(model, name, layer.fold())
    return model


def _exposed(model: nn.Module, plan: CompressionPlan) -> nn.Module:
    return expose_(model, parents_to_expose(model, plan.factorized()))


def _plain(model: nn.Module, name: str, layer_plan: LayerPlan) -> PlainLayer:
    module = dict(model.named_modules()).get(name)
    layer = plain_layer(module) if module is not None and is_weight_layer(module) else None
    if layer is None or tuple(layer.weight.shape) != layer_plan.dense_shape:
        raise OptionError(
            f"the plan has a {layer_plan.kind} of shape {layer_plan.dense_shape} at `{name}`, the network has not",
            hint="make the plan again for this checkpoint",
        )
    return layer


def _set_bias_(layer: LowRankLayer, bias: Tensor | None) -> None:
    if bias is None:
        return
    if isinstance(layer, SplitLowRankLinear):
        for part, values in zip(layer.expand, bias.detach().chunk(len(layer.ranks)), strict=True):
            part.bias = nn.Parameter(values.clone())
    else:
        last: Any = layer.expand
        last.bias = nn.Parameter(bias.detach().clone())
