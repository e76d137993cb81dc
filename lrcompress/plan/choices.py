"""What a layer can be given: every scheme at every rank that is worth it, with its cost and its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrcompress.nn import PlainLayer
from lrcompress.schemes import Call, Decomposition, Scheme, count_positions
from lrcompress.schemes.scheme import dense_macs, dense_parameters

MODES = 3  # the largest number of ranks of a layer


@dataclass(frozen=True)
class Option:
    """One way to factorise one layer."""

    scheme: str
    ranks: tuple[int, ...]
    relative_error: float
    parameters: int
    macs: int


@dataclass(frozen=True)
class Choices:
    """The options of one layer, cheapest first in parameters.

    Attributes:
        names: of the schemes.
        schemes: index of each option's scheme.
        ranks: of each option, filled up with zeros.
        squared_errors: ‖W − W_r‖²/‖W‖² of each option, in the metric of the truncation.
        parameters: of each option's weights, without the bias.
        macs: of each option for one image.
        useful: which options have fewer parameters than the dense layer, and no more multiply-accumulates.
        dense_parameters: of the dense layer's weight.
        dense_macs: of the dense layer.
        wanted: the option of the rank that the policy gives every layer, None if it gives none.
        may_stay_dense: whether leaving the layer as it is comes into question too.
    """

    names: tuple[str, ...]
    schemes: Int[Tensor, "k"]
    ranks: Int[Tensor, "k modes"]
    squared_errors: Float[Tensor, "k"]
    parameters: Int[Tensor, "k"]
    macs: Int[Tensor, "k"]
    useful: Bool[Tensor, "k"]
    dense_parameters: int
    dense_macs: int
    wanted: int | None = None
    may_stay_dense: bool = True

    def option(self, index: int) -> Option:
        """Returns one option."""
        ranks = tuple(rank for rank in self.ranks[index].tolist() if rank > 0)
        return Option(
            self.names[int(self.schemes[index])],
            ranks,
            float(self.squared_errors[index].sqrt()),
            int(self.parameters[index]),
            int(self.macs[index]),
        )

    def cheapest_within(self, tol: float, *, useful: bool = True) -> int | None:
        """Returns the option of fewest parameters, then fewest multiply-accumulates, with a relative error within tol.

        Args:
            tol: the relative tolerance.
            useful: whether only useful options count.
        """
        within = self.squared_errors <= tol**2
        indices = (within & self.useful if useful else within).nonzero()[:, 0]
        if not len(indices):
            return None
        fewest = indices[self.parameters[indices] == self.parameters[indices[0]]]  # they are in this order
        return int(fewest[self.macs[fewest].argmin()])

    def smallest_useful_error(self) -> float | None:
        """Returns the smallest relative error of any useful option, None if there is none."""
        return float(self.squared_errors[self.useful].min().sqrt()) if bool(self.useful.any()) else None


def list_choices(
    layer: PlainLayer,
    calls: Sequence[Call],
    decompositions: Mapping[Scheme, Decomposition],
    *,
    replaced_parameters: int | None = None,
    wanted_rank: int | None = None,
    round_ranks: int = 1,
) -> Choices:
    """Returns the options of a layer.

    Args:
        layer: the dense layer.
        calls: of the layer.
        decompositions: of its weight, by scheme.
        replaced_parameters: how many the dense layer has, if it is more than its weight's.
        wanted_rank: the option of this rank in every mode, or the largest there is, is among them; it is one of the
            wanted scheme, the first of the decompositions.
        round_ranks: only ranks that are multiples of this, or full, are options.
    """
    positions, parts = count_positions(calls), []
    dense = replaced_parameters or dense_parameters(layer), dense_macs(layer, positions)
    for number, (scheme, decomposition) in enumerate(decompositions.items()):
        ranks = decomposition.ranks()
        if round_ranks > 1:
            full = torch.tensor(scheme.largest_ranks(layer))
            ranks = ranks[((ranks % round_ranks == 0) | (ranks == full)).all(1)]
        if ranks.shape[1] == 2:  # otherwise one rank after the other costs more and errs less
            costs = scheme.parameters(layer, ranks), scheme.macs(layer, ranks, positions)
            ranks = ranks[_worth_it(*costs, decomposition.squared_errors(ranks), dense)]
        parts.append((number, scheme, decomposition, ranks))
    if wanted_rank is not None:
        scheme, decomposition = next(iter(decompositions.items()))
        parts.append((0, scheme, decomposition, torch.tensor([scheme.uniform_ranks(layer, wanted_rank)])))
    schemes = torch.cat([torch.full((len(ranks),), number) for number, _, _, ranks in parts])
    padded = torch.cat([torch.nn.functional.pad(ranks, (0, MODES - ranks.shape[1])) for *_, ranks in parts])
    errors = torch.cat([decomposition.squared_errors(ranks) for _, _, decomposition, ranks in parts])
    parameters = torch.cat([scheme.parameters(layer, ranks) for _, scheme, _, ranks in parts])
    macs = torch.cat([scheme.macs(layer, ranks, positions) for _, scheme, _, ranks in parts])
    order = parameters.sort(stable=True).indices
    return Choices(
        names=tuple(scheme.name for scheme in decompositions),
        schemes=schemes[order],
        ranks=padded[order],
        squared_errors=errors[order],
        parameters=parameters[order],
        macs=macs[order],
        useful=((parameters < dense[0]) & (macs <= dense[1]))[order],
        dense_parameters=dense[0],
        dense_macs=dense[1],
        wanted=None if wanted_rank is None else int((order == len(order) - 1).nonzero()[0, 0]),
    )


def _worth_it(
    parameters: Int[Tensor, "k"], macs: Int[Tensor, "k"], errors: Float[Tensor, "k"], dense: tuple[int, int]
) -> Bool[Tensor, "k"]:
    """Whether an option is useful and no other useful one is as small, or as fast, with no larger error."""
    useful = (parameters < dense[0]) & (macs <= dense[1])
    result = torch.zeros_like(useful)
    kept = _on_staircase(parameters[useful], errors[useful]) | _on_staircase(macs[useful], errors[useful])
    result[useful] = kept
    return result


def _on_staircase(costs: Int[Tensor, "k"], errors: Float[Tensor, "k"]) -> Bool[Tensor, "k"]:
    # By cost, and of equal costs the smallest error first.
    order = errors.sort(stable=True).indices
    order = order[costs[order].sort(stable=True).indices]
    best = errors[order].cummin(0).values
    first = torch.cat([best.new_full((1,), float("inf")), best[:-1]])
    result = torch.zeros(len(costs), dtype=torch.bool)
    result[order] = errors[order] < first
    return result
