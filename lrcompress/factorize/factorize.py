"""Replaces layers by their truncated singular value decompositions."""

import copy
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.errors import OptionError
from lrcompress.linalg import truncated_svd
from lrcompress.nn import dense_matrix, factored_from_dense, factored_layers, is_matrix_layer, replace_module_
from lrcompress.plan import CompressionPlan


def factorize(
    model: nn.Module, plan: CompressionPlan, *, output_grams: Mapping[str, Float[Tensor, "_ _"]] | None = None
) -> nn.Module:
    """Returns a copy of the model whose planned layers hold U, S and V apart; `fold_` makes them shippable.

    Args:
        model: the dense network.
        plan: what is to be done.
        output_grams: the metric the plan was made with, by layer; see `lrcompress.plan.output_grams`.

    Raises:
        OptionError: if the plan was made for another network.
    """
    low_rank = copy.deepcopy(model)
    modules = dict(low_rank.named_modules())
    for name, layer_plan in plan.factorized().items():
        layer = modules.get(name)
        if layer is None or not is_matrix_layer(layer) or tuple(layer.weight.shape) != layer_plan.dense_shape:
            raise OptionError(
                f"the plan has a {layer_plan.kind} of shape {layer_plan.dense_shape} at `{name}`, the network has not",
                hint="make the plan again for this checkpoint",
            )
        assert layer_plan.rank is not None  # every scheme but dense has a rank
        factors = truncated_svd(dense_matrix(layer), layer_plan.rank, output_gram=(output_grams or {}).get(name))
        replace_module_(low_rank, name, factored_from_dense(layer, factors))
    return low_rank


def fold_(model: nn.Module) -> nn.Module:
    """Turns every factored layer of the model into its shipped form, two plain layers, and returns the model."""
    for name, layer in factored_layers(model).items():
        replace_module_(model, name, layer.fold())
    return model
