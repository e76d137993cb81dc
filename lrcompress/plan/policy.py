"""Rank policies: from all spectra to all ranks. A rank beyond the largest useful one leaves a layer dense."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lrcompress.errors import OptionError
from lrcompress.linalg import truncation_rank
from lrcompress.plan.allocate import Allocation, allocate


@dataclass(frozen=True)
class Spectrum:
    """What a policy knows of a layer.

    Attributes:
        sigma: all min(m, n) singular values in descending order.
        m: rows of the weight matrix.
        n: columns of the weight matrix.
        positions: how often the matrix is applied to one image: a convolution's output pixels, a transformer's tokens.
    """

    sigma: Float[Tensor, "k"]
    m: int
    n: int
    positions: int = 1

    @property
    def largest_useful_rank(self) -> int:
        """The largest r with r(m + n) < mn, which removes parameters; 0 if there is none."""
        return useful_rank(self.m, self.n)

    def relative_error(self, rank: int) -> float:
        """Returns ‖W − W_r‖_F/‖W‖_F of the truncation to a rank."""
        return float(squared_errors(self.sigma)[rank].sqrt())


@dataclass(frozen=True)
class WholeModel:
    """What the dense network has in all, biases, norms and the layers that stay as they are included.

    Attributes:
        parameters: their number.
        macs: multiply-accumulate operations per image.
        saved_parameters: how many of them are gone in layers whose ranks are given, and not to be chosen.
        saved_macs: the same in operations.
    """

    parameters: int
    macs: int
    saved_parameters: int = 0
    saved_macs: int = 0


class RankPolicy(ABC):
    """Chooses one rank per layer; sees all spectra at once, so that a policy may trade layers against each other."""

    @abstractmethod
    def choose_ranks(self, spectra: Mapping[str, Spectrum], whole: WholeModel) -> dict[str, int]:
        """Returns the rank of every layer, at least 1.

        Args:
            spectra: by the layer's name; none is all zero.
            whole: what the dense network has in all.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the policy's name and parameters as JSON types."""

    def guaranteed_tol(self) -> float | None:
        """The relative error that no factorised layer exceeds, None if nothing is promised."""
        return None

    def may_enlarge(self) -> bool:
        """Whether layers are to be factorised even where that adds parameters."""
        return False


@dataclass(frozen=True)
class Tolerance(RankPolicy):
    """The smallest ranks whose relative error is at most `tol` in every layer. A guarantee, independent of data.

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
    def choose_ranks(self, spectra: Mapping[str, Spectrum], whole: WholeModel) -> dict[str, int]:
        return {name: max(1, truncation_rank(spectrum.sigma, self.tol)) for name, spectrum in spectra.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "tolerance", "tol": self.tol}

    @override
    def guaranteed_tol(self) -> float | None:
        return self.tol


@dataclass(frozen=True)
class Energy(RankPolicy):
    """The smallest ranks that keep a share of the squared norm, Σ_{i≤r} σ_i² ≥ energy·Σ σ_i², in every layer.

    Args:
        energy: in (0, 1); the same as the tolerance sqrt(1 − energy).

    Raises:
        OptionError: if `energy` is out of range.
    """

    energy: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.energy) and 0 < self.energy < 1):
            raise OptionError(
                f"--energy must lie strictly between 0 and 1, got {self.energy}", hint="--energy 0.99 is --tol 0.1"
            )

    @override
    def choose_ranks(self, spectra: Mapping[str, Spectrum], whole: WholeModel) -> dict[str, int]:
        return Tolerance(math.sqrt(1 - self.energy)).choose_ranks(spectra, whole)

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
    def choose_ranks(self, spectra: Mapping[str, Spectrum], whole: WholeModel) -> dict[str, int]:
        return {name: min(self.rank, len(spectrum.sigma)) for name, spectrum in spectra.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "uniform rank", "rank": self.rank}


@dataclass(frozen=True)
class Budget(RankPolicy):
    """The ranks of the smallest Σ (relative error)² over all layers whose whole model fits a budget.

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
    def choose_ranks(self, spectra: Mapping[str, Spectrum], whole: WholeModel) -> dict[str, int]:
        # Counted in parameters, or in multiply-accumulates, of which each parameter costs one per position.
        weights = {name: 1 if self.macs is None else spectrum.positions for name, spectrum in spectra.items()}
        total = whole.parameters if self.macs is None else whole.macs
        saved = whole.saved_parameters if self.macs is None else whole.saved_macs
        untouched = total - saved - sum(weights[name] * s.m * s.n for name, s in spectra.items())
        limit = self.macs or self.parameters or math.floor((self.fraction or 0) * total)
        layers = {
            name: Allocation(
                squared_errors=squared_errors(spectrum.sigma)[1 : spectrum.largest_useful_rank + 1],
                cost_per_rank=weights[name] * (spectrum.m + spectrum.n),
                dense_cost=weights[name] * spectrum.m * spectrum.n,
            )
            for name, spectrum in spectra.items()
        }
        smallest = untouched + sum(layer.smallest_cost for layer in layers.values())
        if limit < smallest:
            unit = "parameters" if self.macs is None else "multiply-accumulates"
            raise OptionError(
                f"the budget of {limit:,} {unit} cannot be met: rank 1 in every layer that may be factorised leaves "
                f"{smallest:,} of {total:,}",
                hint="raise the budget, or allow more layers with --include-first and --include-classifier",
            )
        chosen = allocate(layers, limit - untouched)
        return {name: chosen[name] or len(spectra[name].sigma) for name in spectra}

    @override
    def describe(self) -> dict[str, Any]:
        values = {"fraction": self.fraction, "parameters": self.parameters, "macs": self.macs}
        return {"name": "budget", **{key: value for key, value in values.items() if value is not None}}


@dataclass(frozen=True)
class TrainingStart(Tolerance):
    """The tolerance's ranks, but never more than what removes parameters: where fine-tuning starts.

    The error of a layer that is cut to that rank exceeds the tolerance at first. Training closes the gap, so the layer
    need not stay dense as it must without data.

    Args:
        tol: τ in (0, 1).
        max_rank: largest rank of any layer; None allows all that remove parameters.
    """

    max_rank: int | None = None

    @override
    def choose_ranks(self, spectra: Mapping[str, Spectrum], whole: WholeModel) -> dict[str, int]:
        wanted = super().choose_ranks(spectra, whole)
        limits = {
            name: min(s.largest_useful_rank, self.max_rank or s.largest_useful_rank) for name, s in spectra.items()
        }
        return {name: max(1, min(rank, limits[name])) for name, rank in wanted.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "training start", "tol": self.tol, "max_rank": self.max_rank}

    @override
    def guaranteed_tol(self) -> float | None:
        return None


@dataclass(frozen=True)
class FullRank(RankPolicy):
    """All singular values, even where that adds parameters: for checking a factorisation, not for compressing."""

    @override
    def choose_ranks(self, spectra: Mapping[str, Spectrum], whole: WholeModel) -> dict[str, int]:
        return {name: len(spectrum.sigma) for name, spectrum in spectra.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "full rank"}

    @override
    def may_enlarge(self) -> bool:
        return True


def squared_errors(sigma: Float[Tensor, "k"]) -> Float[Tensor, "k1"]:
    """Returns ‖W − W_r‖²/‖W‖² for r = 0 … k in float64; summed from the smallest value up, to lose nothing."""
    squares = sigma.double().square()
    tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    return tails / tails[0]


def useful_rank(m: int, n: int) -> int:
    """Returns the largest r with r(m + n) < mn, which removes parameters; 0 if there is none."""
    return (m * n - 1) // (m + n)
