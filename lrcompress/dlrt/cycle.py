"""One layer after the other through a change of basis, the optimiser's state with it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lrcompress.dlrt.moments import carry_moments
from lrcompress.dlrt.options import DlrtOptions
from lrcompress.dlrt.step import BasisChange, augment, truncate
from lrcompress.linalg import Factors
from lrcompress.nn import FactoredLayer


@torch.no_grad()
def augment_(layers: Mapping[str, FactoredLayer], optimizer: torch.optim.Optimizer) -> None:
    """Extends the bases of all layers by the gradients that lie in `U.grad` and `V.grad`."""
    for layer in layers.values():
        factors, change = augment(layer.factors(), _gradient(layer.U), _gradient(layer.V))
        _move_(layer, factors, change, optimizer)


@torch.no_grad()
def truncate_(layers: Mapping[str, FactoredLayer], optimizer: torch.optim.Optimizer, options: DlrtOptions) -> None:
    """Truncates all layers to the tolerance, within the allowed ranks."""
    for layer in layers.values():
        factors, change = truncate(
            layer.factors(), tol=options.tol, min_rank=options.min_rank, max_rank=largest_rank(layer, options)
        )
        _move_(layer, factors, change, optimizer)


def largest_rank(layer: FactoredLayer, options: DlrtOptions) -> int:
    """Returns the largest rank that removes parameters, r(m + n) < mn, and that the options allow; at least 1."""
    m, n = layer.matrix_shape
    break_even = (m * n - 1) // (m + n)
    return max(1, min(break_even, options.max_rank or break_even))


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    # A layer that this batch did not reach has no gradient: its basis gets no new direction from it.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _move_(layer: FactoredLayer, factors: Factors, change: BasisChange, optimizer: torch.optim.Optimizer) -> None:
    layer.set_factors_(factors)
    state = optimizer.state.get(layer.S)
    if state:  # empty before the first step
        state["exp_avg"], state["exp_avg_sq"] = carry_moments(state["exp_avg"], state["exp_avg_sq"], change)
