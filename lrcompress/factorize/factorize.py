"""Replaces layers by low-rank ones."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lrcompress.errors import OptionError
from lrcompress.linalg import truncated_svd
from lrcompress.memory import release_pages, trim_heap
from lrcompress.nn import (
    LowRankLayer,
    PlainLayer,
    SplitLowRankLinear,
    expose_,
    factored_from_dense,
    factored_layers,
    is_trainable,
    is_weight_layer,
    parents_to_expose,
    plain_layer,
    replace_module_,
    twin,
    weight_matrices,
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
    model: nn.Module, plan: CompressionPlan, *, decomposer: Decomposer | None = None
) -> nn.Module:
    """Returns a copy of the model whose planned layers hold U, S and V apart, for DLRT; `fold_` makes it shippable.

    Args:
        model: the dense network; nothing is shared with it.
        plan: what is to be done, with the scheme "matrix" in every layer that DLRT trains.
        decomposer: the one the plan was made with, for the metric of the truncation.

    Raises:
        OptionError: if the plan was made for another network.
    """
    low_rank = _exposed(copy.deepcopy(model), plan)
    for name, layer_plan in plan.factorized().items():
        layer = _plain(low_rank, name, layer_plan)
        assert is_trainable(layer) and layer_plan.scheme == "matrix"  # as the policy for training plans
        metric = decomposer.metrics.get(name) if decomposer is not None else None
        gram = None if metric is None else metric.output_gram[0]
        factors = truncated_svd(weight_matrices(layer)[0], layer_plan.ranks[0], output_gram=gram)
        replace_module_(low_rank, name, factored_from_dense(layer, factors))
    return low_rank


def fold_(model: nn.Module) -> nn.Module:
    """Turns every factored layer of the model into its shipped form, two plain layers, and returns the model."""
    for name, layer in factored_layers(model).items():
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
