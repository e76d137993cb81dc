"""Divides one budget among all layers, so that the sum of their squared relative errors becomes smallest."""

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Allocation:
    """What a layer can be given.

    Attributes:
        costs: of the options that cost less than leaving the layer dense, in any order.
        squared_errors: ‖W − W_r‖²/‖W‖² of the same options.
        dense_cost: of leaving the layer as it is, without an error; None if that is no option.
    """

    costs: Int[Tensor, "k"]
    squared_errors: Float[Tensor, "k"]
    dense_cost: int | None

    @property
    def smallest_cost(self) -> int:
        """The cost of the cheapest option, or of the dense layer where none costs less."""
        if len(self.costs):
            return int(self.costs.min())
        assert self.dense_cost is not None  # there is no other option
        return self.dense_cost


def allocate(layers: Mapping[str, Allocation], budget: int) -> dict[str, int | None]:
    """Returns the index of every layer's option, None for a layer that is left dense.

    Every layer starts at its cheapest option. Then the step that removes most error for its cost is taken, again and
    again. Along the lower convex hull of each layer's costs and errors, whose last point is a dense layer, these
    steps come in descending order of their worth, so the result is optimal for the cost it has. What is left of the
    budget when the next step does not fit is filled with the steps off the hull that remove most error.

    Args:
        layers: by name.
        budget: at least the sum of all smallest costs.

    Raises:
        ValueError: if the budget is less than that.
    """
    left = budget - sum(layer.smallest_cost for layer in layers.values())
    if left < 0:
        raise ValueError(f"a budget of {budget} is {-left} too small")
    hulls = {name: _lower_hull(layer) for name, layer in layers.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    steps = sorted(step for name, hull in hulls.items() for step in _steps(name, hull))
    for _, name, position, cost in steps:
        if cost > left:
            break
        left -= cost
        chosen[name] = hulls[name][position]
    _fill_up_(chosen, layers, left)
    return {name: None if index == len(layers[name].costs) else index for name, (_, _, index) in chosen.items()}


def _steps(name: str, hull: list[tuple[int, float, int]]) -> Iterator[tuple[float, str, int, int]]:
    """Yields (−worth, name, position of the corner it leads to, cost) of each step along a hull, worthiest first."""
    worth = math.inf
    for position, (before, after) in enumerate(itertools.pairwise(hull), start=1):
        cost = after[0] - before[0]
        # Convex but for rounding, which must not change the order of the steps.
        worth = min(worth, (before[1] - after[1]) / cost)
        yield -worth, name, position, cost


def _lower_hull(layer: Allocation) -> list[tuple[int, float, int]]:
    """Returns (cost, error, index) of the corners of the lower convex hull, cheapest first, a dense layer last.

    The dense layer's index is the number of options.
    """
    points = _descending(layer)
    hull: list[tuple[int, float, int]] = []
    for point in points:
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _descending(layer: Allocation) -> list[tuple[int, float, int]]:
    """Returns the options by cost, without those that cost no less than another one and err no less."""
    costs, errors = layer.costs, layer.squared_errors.double()
    if layer.dense_cost is not None:
        costs = torch.cat([costs, torch.tensor([layer.dense_cost])])
        errors = torch.cat([errors, torch.zeros(1, dtype=torch.float64)])
    order = errors.sort(stable=True).indices
    order = order[costs[order].sort(stable=True).indices]
    best = errors[order].cummin(0).values
    kept = order[torch.cat([torch.ones(1, dtype=torch.bool), best[1:] < best[:-1]])]
    return list(zip(costs[kept].tolist(), errors[kept].tolist(), kept.tolist(), strict=True))


def _is_above(left: tuple[int, float, int], middle: tuple[int, float, int], right: tuple[int, float, int]) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    slope = (right[1] - left[1]) / (right[0] - left[0])
    return middle[1] >= left[1] + slope * (middle[0] - left[0])


def _fill_up_(chosen: dict[str, tuple[int, float, int]], layers: Mapping[str, Allocation], left: int) -> None:
    """Takes steps that fit into what is left, those that remove most error first, until none does."""
    points = {name: _descending(layer) for name, layer in layers.items()}
    costs = {name: [point[0] for point in listed] for name, listed in points.items()}
    while True:
        best: tuple[float, str, tuple[int, float, int]] | None = None
        for name, (cost, error, _) in chosen.items():
            # Errors fall along the points, so that the last one that can be afforded is the best.
            last = points[name][bisect.bisect_right(costs[name], cost + left) - 1]
            if best is None or error - last[1] > best[0]:
                best = (error - last[1], name, last)
        if best is None or best[0] <= 0:
            return
        left -= best[2][0] - chosen[best[1]][0]
        chosen[best[1]] = best[2]
