"""Rank policies: from the options of all layers to one per layer, or to none, which leaves a layer dense."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from lrcompress.errors import OptionError
from lrcompress.plan.allocate import Allocation, allocate
from lrcompress.plan.choices import Choices


@dataclass(frozen=True)
class WholeModel:
    """What the dense network has in all, biases, norms and the layers that stay as they are included.

    Attributes:
        parameters: their number.
        macs: multiply-accumulate operations per image; 0 if the policy does not need them.
        saved_parameters: how many of them are gone in layers whose ranks are given, and not to be chosen.
        saved_macs: the same in operations.
        constraints: what keeps it from becoming smaller, as a hint names it.
    """

    parameters: int
    macs: int
    saved_parameters: int = 0
    saved_macs: int = 0
    constraints: tuple[str, ...] = ()


class RankPolicy(ABC):
    """Chooses an option per layer; sees those of all layers at once, so that it may trade layers against each other."""

    @abstractmethod
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        """Returns the index of every layer's option, None for a layer that stays dense.

        Args:
            choices: by the layer's name; no weight is all zero.
            whole: what the dense network has in all.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the policy's name and parameters as JSON types."""

    def wanted_rank(self) -> int | None:
        """The rank that every layer is to have, None where the policy looks at all of them."""
        return None

    def scheme(self) -> str | None:
        """The scheme that every layer is to have, None where any will do."""
        return None

    def why_dense(self, choices: Choices) -> str:
        """Returns why a layer stays dense for which no option was chosen."""
        smallest = choices.smallest_useful_error()
        if smallest is None:
            return "no rank removes parameters without adding multiply-accumulates"
        return (
            "what was asked for does not remove parameters; of what does, the smallest relative error is "
            f"{smallest:.3f}"
        )

    def needs_macs(self) -> bool:
        """Whether the policy looks at the multiply-accumulates of the whole network, which take a pass to count."""
        return False

    def guaranteed_tol(self) -> float | None:
        """The relative error that no factorised layer exceeds, None if nothing is promised."""
        return None

    def may_enlarge(self) -> bool:
        """Whether layers are to be factorised even where that adds parameters."""
        return False


@dataclass(frozen=True)
class Tolerance(RankPolicy):
    """The cheapest option whose relative error is at most `tol`, in every layer. A guarantee, independent of data.

    Args:
        tol: τ in (0, 1).

    Raises:
        OptionError: if `tol` is out of range.
    """

    tol: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tol) and 0 < self.tol < 1):
            raise OptionError(
                f"--tol must lie strictly between 0 and 1, got {self.tol}",
                hint="--tol 0.1 keeps 99 % of each layer's squared norm; a larger tolerance makes a smaller file",
            )

    @override
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        return {name: one.cheapest_within(self.tol) for name, one in choices.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "tolerance", "tol": self.tol}

    @override
    def guaranteed_tol(self) -> float | None:
        return self.tol


@dataclass(frozen=True)
class Energy(RankPolicy):
    """The cheapest option that keeps a share of the squared norm, ‖W_r‖² ≥ energy·‖W‖², in every layer.

    Args:
        energy: in (0, 1); the same as the tolerance sqrt(1 − energy).

    Raises:
        OptionError: if `energy` is out of range.
    """

    energy: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.energy) and 0 < 1 - self.energy < 1):
            raise OptionError(
                f"--energy must lie strictly between 0 and 1, got {self.energy}", hint="--energy 0.99 is --tol 0.1"
            )

    @override
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        return Tolerance(math.sqrt(1 - self.energy)).choose(choices, whole)

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "energy", "energy": self.energy}

    @override
    def guaranteed_tol(self) -> float | None:
        return math.sqrt(1 - self.energy)


@dataclass(frozen=True)
class UniformRank(RankPolicy):
    """The same rank in every layer where that removes parameters; a baseline for comparisons.

    Args:
        rank: at least 1.

    Raises:
        OptionError: if `rank` is out of range.
    """

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise OptionError(f"--rank must be at least 1, got {self.rank}", hint="--rank 32")

    @override
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        return {
            name: one.wanted if one.wanted is not None and bool(one.useful[one.wanted]) else None
            for name, one in choices.items()
        }

    @override
    def wanted_rank(self) -> int | None:
        return self.rank

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "uniform rank", "rank": self.rank}


@dataclass(frozen=True)
class Budget(RankPolicy):
    """The options of the smallest Σ (relative error)² over all layers whose whole model fits a budget.

    Exactly one of the three is given.

    Args:
        fraction: of the dense network's parameters, in (0, 1).
        parameters: at most so many in all.
        macs: at most so many multiply-accumulate operations per image in all.

    Raises:
        OptionError: if a value is out of range, or the network cannot be made so small.
    """

    fraction: float | None = None
    parameters: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.fraction, self.parameters, self.macs) if value is not None]
        if len(given) != 1:
            raise OptionError("a budget has one measure", hint="give --budget, --max-params or --max-macs")
        if self.fraction is not None and not (math.isfinite(self.fraction) and 0 < self.fraction < 1):
            raise OptionError(
                f"--budget must lie strictly between 0 and 1, got {self.fraction}",
                hint="--budget 0.25 keeps 25 % of the parameters",
            )
        if given[0] <= 0:
            raise OptionError(f"a budget must be positive, got {given[0]}", hint="--budget 0.25")

    @override
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        in_macs = self.macs is not None
        total = whole.macs if in_macs else whole.parameters
        saved = whole.saved_macs if in_macs else whole.saved_parameters
        dense = {name: one.dense_macs if in_macs else one.dense_parameters for name, one in choices.items()}
        untouched = total - saved - sum(dense.values())
        limit = self.macs or self.parameters or math.floor((self.fraction or 0) * total)
        indices = {name: one.useful.nonzero()[:, 0] for name, one in choices.items()}
        layers = {
            name: Allocation(
                costs=(one.macs if in_macs else one.parameters)[indices[name]],
                squared_errors=one.squared_errors[indices[name]],
                dense_cost=dense[name] if one.may_stay_dense else None,
            )
            for name, one in choices.items()
        }
        smallest = untouched + sum(layer.smallest_cost for layer in layers.values())
        if limit < smallest:
            unit = "multiply-accumulates" if in_macs else "parameters"
            raise OptionError(
                f"the budget of {limit:,} {unit} cannot be met: the smallest possible model has {smallest:,} of "
                f"{total:,} ({100 * smallest / total:.1f} %)",
                hint=" or ".join(
                    [
                        *(["raise the budget"] if smallest < total else []),
                        *(["allow more with " + ", ".join(whole.constraints)] if whole.constraints else []),
                    ]
                )
                or "no layer of this network can become smaller",
            )
        chosen = allocate(layers, limit - untouched)
        return {name: None if index is None else int(indices[name][index]) for name, index in chosen.items()}

    def times(self, factor: float) -> "Budget":
        """Returns a budget so many times as large, at most nearly all of the network."""
        if self.fraction is not None:
            return Budget(fraction=min(0.999, factor * self.fraction))
        if self.parameters is not None:
            return Budget(parameters=round(factor * self.parameters))
        return Budget(macs=round(factor * (self.macs or 0)))

    @override
    def needs_macs(self) -> bool:
        return self.macs is not None

    @override
    def why_dense(self, choices: Choices) -> str:
        return "the budget has room for the whole layer" if bool(choices.useful.any()) else super().why_dense(choices)

    @override
    def describe(self) -> dict[str, Any]:
        values = {"fraction": self.fraction, "parameters": self.parameters, "macs": self.macs}
        return {"name": "budget", **{key: value for key, value in values.items() if value is not None}}


@dataclass(frozen=True)
class Smallest(RankPolicy):
    """The option of fewest parameters in every layer: how small a network can be made, whatever it then computes."""

    @override
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        useful = {name: one.useful.nonzero()[:, 0] for name, one in choices.items()}
        return {name: int(indices[0]) if len(indices) else None for name, indices in useful.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "smallest"}


@dataclass(frozen=True)
class TrainingStart(Tolerance):
    """The tolerance's options where they are small enough, else the best ones that are: where fine-tuning starts.

    Where no option within the tolerance removes parameters, the one of the smallest error that does is taken. Training
    closes the gap, so the layer need not stay dense as it must without data.

    Args:
        tol: τ in (0, 1).
        max_rank: largest rank of any layer; None allows all that remove parameters.
    """

    max_rank: int | None = None

    @override
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        return {name: self._start(one) for name, one in choices.items()}

    def _start(self, choices: Choices) -> int | None:
        small = choices.useful & (choices.ranks.amax(1) <= (self.max_rank or sys.maxsize))
        possible = small.nonzero()[:, 0]
        if not len(possible):
            return None
        within = possible[choices.squared_errors[possible] <= self.tol**2]  # in the order of their parameters
        return int(within[0] if len(within) else possible[choices.squared_errors[possible].argmin()])

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "training start", "tol": self.tol, "max_rank": self.max_rank}

    @override
    def guaranteed_tol(self) -> float | None:
        return None


@dataclass(frozen=True)
class WideStart(RankPolicy):
    """Of the layers that a budget factorises, in the same forms, the best options of a larger budget.

    Where fine-tuning starts that comes down to its budget step by step: a layer that were left dense because the larger
    budget has room for it could not become smaller later.

    Args:
        budget: what fine-tuning ends with.
        factor: how many times as much it starts with, at least 1.
    """

    budget: Budget
    factor: float

    @override
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        final = self.budget.choose(choices, whole)
        factorised = {
            name: replace(one, useful=one.useful & (one.schemes == one.schemes[index]), may_stay_dense=False)
            for name, one in choices.items()
            if (index := final[name]) is not None
        }
        return final | self.budget.times(self.factor).choose(factorised, whole)

    @override
    def needs_macs(self) -> bool:
        return self.budget.needs_macs()

    @override
    def why_dense(self, choices: Choices) -> str:
        return self.budget.why_dense(choices)

    @override
    def describe(self) -> dict[str, Any]:
        return {**self.budget.describe(), "factor": self.factor}


@dataclass(frozen=True)
class FullRank(RankPolicy):
    """All singular values, even where that adds parameters: for checking a factorisation, not for compressing."""

    @override
    def choose(self, choices: Mapping[str, Choices], whole: WholeModel) -> dict[str, int | None]:
        return {name: one.wanted for name, one in choices.items()}

    @override
    def wanted_rank(self) -> int | None:
        return sys.maxsize

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "full rank"}

    @override
    def may_enlarge(self) -> bool:
        return True
