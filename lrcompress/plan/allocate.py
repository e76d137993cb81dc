"""Divides one budget among all layers, so that the sum of their squared relative errors becomes smallest."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Allocation:
    """What a layer can be given.

    Attributes:
        squared_errors: ‖W − W_r‖²/‖W‖² of ranks 1 … u, the ranks that cost less than leaving the layer dense; convex,
            because singular values descend.
        cost_per_rank: of each rank.
        dense_cost: of leaving the layer as it is, without an error.
    """

    squared_errors: Float[Tensor, "u"]
    cost_per_rank: int
    dense_cost: int

    @property
    def smallest_cost(self) -> int:
        """The cost of rank 1, or of the dense layer where no rank costs less."""
        return self.cost_per_rank if len(self.squared_errors) else self.dense_cost


def allocate(layers: Mapping[str, Allocation], budget: int) -> dict[str, int]:
    """Returns the rank of every layer, 0 for one that is left dense.

    Every layer starts at its smallest cost. Then the step that removes most error for its cost is taken, again and
    again: one rank more, or from some rank on the step to the dense layer, which removes all error that is left. Along
    the lower convex hull of each layer's costs and errors these steps come in descending order of their worth, so the
    result is optimal for the cost it has. What is left of the budget when the next step does not fit, less than that
    step costs, is filled with the best of the steps that do.

    Args:
        layers: by name.
        budget: at least the sum of all smallest costs.

    Raises:
        ValueError: if the budget is less than that.
    """
    left = budget - sum(layer.smallest_cost for layer in layers.values())
    if left < 0:
        raise ValueError(f"a budget of {budget} is {-left} too small")
    ranks = {name: 1 if len(layer.squared_errors) else 0 for name, layer in layers.items()}
    for along_hull in (True, False):
        left = _take_steps(layers, ranks, left, along_hull=along_hull)
    return ranks


def _take_steps(layers: Mapping[str, Allocation], ranks: dict[str, int], left: int, *, along_hull: bool) -> int:
    """Takes steps in the order of their worth, changes `ranks`, and returns what is left of the budget.

    Along the hull a layer offers the worthiest of its steps only, and the first one that does not fit is the end;
    otherwise a layer offers all its steps, and those that do not fit are passed over.
    """
    errors = {name: layer.squared_errors.tolist() for name, layer in layers.items()}
    heap: list[tuple[float, str, int, int, int]] = []

    def offer(name: str) -> None:
        rank, layer = ranks[name], layers[name]
        if rank == 0:
            return
        here, rest = errors[name][rank - 1], layer.dense_cost - rank * layer.cost_per_rank
        steps = [(-here / rest, name, rank, 0, rest)]
        if rank < len(errors[name]):
            gain = here - errors[name][rank]
            steps.append((-gain / layer.cost_per_rank, name, rank, rank + 1, layer.cost_per_rank))
        for step in [min(steps)] if along_hull else steps:
            heapq.heappush(heap, step)

    for name in layers:
        offer(name)
    while heap:
        _, name, rank, target, cost = heapq.heappop(heap)
        if ranks[name] != rank:
            continue  # the layer has taken another step from here
        if cost <= left:
            ranks[name], left = target, left - cost
            offer(name)
        elif along_hull:
            break
    return left
