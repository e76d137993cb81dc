"""Divides one budget among all layers, so that the sum of their squared relative errors becomes smallest.

This is the multiple-choice knapsack problem: of every layer one option, of the least error in all that the budget has
room for. It is solved as in Pisinger, "A minimal algorithm for the multiple-choice knapsack problem" (1995): the linear
relaxation gives a bound and a first solution that differ in one layer at most, and layer after layer all ways are
kept that could still become better than the best solution known.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The share of the optimum by which the result may exceed it. A part of it ends the search where the bound allows no
# more, another takes ways for one that err nearly the same, where there are too many of them.
GAP = 2e-3
_PART = GAP / 2.1
_MANY_WAYS, _WAYS_AT_ONCE = 10_000, 2_000_000


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


@dataclass(frozen=True)
class _Front:
    """The options of a layer by rising cost and falling error, the dense layer among them.

    Attributes:
        costs: over that of the cheapest.
        errors: squared, of the same options.
        indices: of the options as the layer lists them; their number for the dense layer.
    """

    costs: Int[Tensor, "k"]
    errors: Float[Tensor, "k"]
    indices: Int[Tensor, "k"]

    def corners(self) -> list[int]:
        """Returns the positions of the corners of the lower convex hull."""
        hull: list[int] = []
        costs, errors = self.costs.tolist(), self.errors.tolist()
        for point in range(len(costs)):
            while len(hull) > 1:
                left, middle = hull[-2:]
                slope = (errors[point] - errors[left]) / (costs[point] - costs[left])
                if errors[middle] < errors[left] + slope * (costs[middle] - costs[left]):
                    break
                hull.pop()
            hull.append(point)
        return hull

    def only(self, kept: Bool[Tensor, "k"]) -> "_Front":
        return _Front(self.costs[kept], self.errors[kept], self.indices[kept])


class _Relaxation:
    """Layers of which each may take a mixture of two options, which makes the best choice easy to find.

    From its cheapest option every layer goes along the lower convex hull of its options. Taken from all layers in the
    order of the error that they remove for their cost, the steps lead from one optimum to the next; a part of a step
    leads to the optimum of a budget between them.

    Attributes:
        smallest_cost: of all layers.
    """

    def __init__(self, fronts: Sequence[_Front]) -> None:
        steps: list[tuple[float, int, int, int, float, int]] = []
        for layer, front in enumerate(fronts):
            worth = float("inf")
            for before, after in itertools.pairwise(front.corners()):
                cost = int(front.costs[after] - front.costs[before])
                removed = float(front.errors[before] - front.errors[after])
                worth = min(worth, removed / cost)  # convex but for rounding, which must not change the order
                steps.append((-worth, layer, after, cost, removed, int(front.indices[after])))
        steps.sort()  # equal ones of a layer in the order of its hull
        self.smallest_cost = sum(int(front.costs[0]) for front in fronts)
        self._start = [int(front.indices[0]) for front in fronts]
        self._steps = [(layer, index) for _, layer, _, _, _, index in steps]
        self._costs = torch.tensor([*itertools.accumulate((step[3] for step in steps), initial=self.smallest_cost)])
        # Summed up from the last one, so that small errors do not vanish in large ones.
        least = sum(float(front.errors[-1]) for front in fronts)
        errors = [*itertools.accumulate((step[4] for step in reversed(steps)), initial=least)]
        self._errors = torch.tensor(errors[::-1], dtype=torch.float64)
        self._worths = torch.tensor([*(-step[0] for step in steps), 0.0], dtype=torch.float64)

    def errors(self, budgets: Int[Tensor, "n"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Returns the least error of any mixture within each budget, and the error where no step is taken in part."""
        last = self._last_step(budgets)
        whole = self._errors[last]
        mixed = whole - (budgets - self._costs[last]) * self._worths[last]
        return mixed.clamp_min(self._errors[-1]), whole

    def worth(self, budget: int) -> float:
        """Returns the error that a unit of cost more would remove."""
        return float(self._worths[self._last_step(torch.tensor(budget))])

    def options(self, budget: int) -> list[int]:
        """Returns the index of each layer's option where no step is taken in part."""
        taken = dict(self._steps[: int(self._last_step(torch.tensor(budget)))])
        return [taken.get(layer, first) for layer, first in enumerate(self._start)]

    def _last_step(self, budgets: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        return torch.searchsorted(self._costs, budgets, right=True) - 1


@dataclass(frozen=True)
class _Ways:
    """Ways to choose from the layers so far: each takes an option of the last layer, and a way of those before.

    Attributes:
        costs: of all layers so far.
        errors: of the same.
        bounds: the least error that can come of a way, whatever the other layers get.
        parents: the positions of the ways before.
        indices: of the options of the last layer.
    """

    costs: Int[Tensor, "n"]
    errors: Float[Tensor, "n"]
    bounds: Float[Tensor, "n"]
    parents: Int[Tensor, "n"]
    indices: Int[Tensor, "n"]

    def only(self, kept: Tensor) -> "_Ways":
        return _Ways(self.costs[kept], self.errors[kept], self.bounds[kept], self.parents[kept], self.indices[kept])


class _Search:
    """Looks for the options of least error, and knows the best ones that it has seen.

    Args:
        fronts: of the layers.
        budget: for what their options cost over the cheapest ones.
    """

    def __init__(self, fronts: Sequence[_Front], budget: int) -> None:
        self._budget = budget
        relaxation = _Relaxation(fronts)
        (self._bound,), (self._error,) = (errors.tolist() for errors in relaxation.errors(torch.tensor([budget])))
        self._worth = relaxation.worth(budget)
        narrowed = [self._narrow(front) for front in fronts]
        # The largest errors first: what is left then fills the budget nearly as well as the relaxation says.
        spans = [float(front.errors[0] - front.errors[-1]) if len(front.errors) else 0.0 for front in narrowed]
        self._order = sorted(range(len(fronts)), key=lambda layer: -spans[layer])
        self._fronts = [narrowed[layer] for layer in self._order]
        self._decided: list[_Ways] = []
        self._best = dict(enumerate(relaxation.options(budget)))

    def run(self) -> list[int]:
        """Returns the index of every layer's option."""
        start = torch.zeros(1, dtype=torch.int64)
        ways = _Ways(start, start.double(), start.double() + self._bound, start, start)
        for number in range(len(self._fronts)):
            ways = ways.only(ways.bounds < self._enough())
            if not len(ways.costs) or self._bound >= self._enough():
                break
            ways = self._extend(ways, self._narrow(self._fronts[number]), _Relaxation(self._fronts[number + 1 :]))
            self._decided.append(ways)
        return [self._best[layer] for layer in range(len(self._fronts))]

    def _enough(self) -> float:
        """The error that must be undercut for a solution to be looked for."""
        return (1 - _PART) * self._error

    def _narrow(self, front: _Front) -> _Front:
        """Leaves out options that cannot be part of a better solution.

        The bound rises, at least, by the height of the layer's option over the tangent at the hull that belongs to it.
        """
        heights = front.errors + self._worth * front.costs
        return front.only(self._bound + heights - heights.min() < self._enough()) if len(heights) else front

    def _extend(self, ways: _Ways, front: _Front, rest: _Relaxation) -> _Ways:
        """Returns the ways that lead from those so far over the options of the next layer, without hopeless ones."""
        pieces = []
        for some in torch.arange(len(ways.costs)).split(max(1, _WAYS_AT_ONCE // len(front.costs))):
            costs = (ways.costs[some, None] + front.costs).flatten()
            fits = (costs + rest.smallest_cost <= self._budget).nonzero()[:, 0]
            costs, errors = costs[fits], (ways.errors[some, None] + front.errors).flatten()[fits]
            least, whole = rest.errors(self._budget - costs)
            parents, indices = some[fits // len(front.costs)], front.indices[fits % len(front.costs)]
            piece = _Ways(costs, errors, errors + least, parents, indices)
            self._remember(piece, errors + whole, rest)
            pieces.append(piece.only(piece.bounds < self._enough()))
        found = _Ways(*(torch.cat(column) for column in zip(*(vars(piece).values() for piece in pieces), strict=True)))
        found = found.only(found.bounds < self._enough())
        kept = _falling(found.costs, found.errors)
        if len(kept) > _MANY_WAYS:
            grid = _PART / len(self._fronts) * float(found.bounds.min())
            kept = _falling(found.costs, (found.errors / grid).floor())
        return found.only(kept)

    def _remember(self, ways: _Ways, errors: Float[Tensor, "n"], rest: _Relaxation) -> None:
        """Keeps the best solution that the ways lead to, if it is better than all before.

        Args:
            ways: over the options of the layer that comes next.
            errors: of all layers.
            rest: the layers that come after.
        """
        if not len(errors) or float(errors.min()) >= self._error:
            return
        way = int(errors.argmin())
        self._error = float(errors[way])
        indices = [int(ways.indices[way]), *rest.options(self._budget - int(ways.costs[way]))]
        parent = int(ways.parents[way])
        for before in reversed(self._decided):
            indices.insert(0, int(before.indices[parent]))
            parent = int(before.parents[parent])
        self._best = dict(zip(self._order, indices, strict=True))


def allocate(layers: Mapping[str, Allocation], budget: int) -> dict[str, int | None]:
    """Returns the index of every layer's option, None for a layer that is left dense.

    The sum of the squared errors exceeds the smallest one that the budget allows by the share `GAP` of it at most.

    Args:
        layers: by name.
        budget: at least the sum of all smallest costs.

    Raises:
        ValueError: if the budget is less than that.
    """
    left = budget - sum(layer.smallest_cost for layer in layers.values())
    if left < 0:
        raise ValueError(f"a budget of {budget} is {-left} too small")
    fronts = [_front(layer) for layer in layers.values()]
    found = _Search(fronts, min(left, sum(int(front.costs[-1]) for front in fronts))).run()
    chosen = zip(layers.items(), found, strict=True)
    return {name: None if index == len(layer.costs) else index for (name, layer), index in chosen}


def _front(layer: Allocation) -> _Front:
    costs, errors = layer.costs, layer.squared_errors.double()
    if layer.dense_cost is not None:
        costs = torch.cat([costs, torch.tensor([layer.dense_cost])])
        errors = torch.cat([errors, torch.zeros(1, dtype=torch.float64)])
    kept = _falling(costs, errors)
    return _Front(costs[kept] - layer.smallest_cost, errors[kept], kept)


def _falling(costs: Int[Tensor, "n"], errors: Float[Tensor, "n"]) -> Int[Tensor, "k"]:
    """Returns what is left, by cost, without what costs no less than another and errs no less."""
    order = errors.sort(stable=True).indices
    order = order[costs[order].sort(stable=True).indices]
    best = errors[order].cummin(0).values
    return order[torch.cat([best.new_full((1,), float("inf")), best])[:-1] > best]
