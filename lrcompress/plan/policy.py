"""Rank policies: from all spectra to all ranks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lrcompress.errors import OptionError
from lrcompress.linalg import truncation_rank


@dataclass(frozen=True)
class Spectrum:
    """What a policy knows of a layer.

    Attributes:
        sigma: all min(m, n) singular values in descending order.
        m: rows of the weight matrix.
        n: columns of the weight matrix.
    """

    sigma: Float[Tensor, "k"]
    m: int
    n: int

    @property
    def largest_useful_rank(self) -> int:
        """The largest r with r(m + n) < mn, which removes parameters; 0 if there is none."""
        return (self.m * self.n - 1) // (self.m + self.n)

    def relative_error(self, rank: int) -> float:
        """Returns ‖W − W_r‖_F/‖W‖_F of the truncation to a rank."""
        squares = self.sigma.square()
        return float((squares[rank:].sum() / squares.sum()).sqrt())


class RankPolicy(ABC):
    """Chooses one rank per layer; sees all spectra at once, so that a policy may trade layers against each other."""

    @abstractmethod
    def choose_ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        """Returns the rank of every layer, at least 1.

        Args:
            spectra: by the layer's name; none is all zero.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the policy's name and parameters as JSON types."""

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
    def choose_ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        return {name: max(1, truncation_rank(spectrum.sigma, self.tol)) for name, spectrum in spectra.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "tolerance", "tol": self.tol}


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
    def choose_ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        wanted = super().choose_ranks(spectra)
        limits = {
            name: min(s.largest_useful_rank, self.max_rank or s.largest_useful_rank) for name, s in spectra.items()
        }
        return {name: max(1, min(rank, limits[name])) for name, rank in wanted.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "training start", "tol": self.tol, "max_rank": self.max_rank}


@dataclass(frozen=True)
class FullRank(RankPolicy):
    """All singular values, even where that adds parameters: for checking a factorisation, not for compressing."""

    @override
    def choose_ranks(self, spectra: Mapping[str, Spectrum]) -> dict[str, int]:
        return {name: len(spectrum.sigma) for name, spectrum in spectra.items()}

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": "full rank"}

    @override
    def may_enlarge(self) -> bool:
        return True
