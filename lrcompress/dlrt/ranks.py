"""Which ranks the layers are truncated to: the policies that plan a compression go on choosing during training.

# Note [A tolerance during training]
The smallest rank whose tail is within τ of the core, asked for again at every truncation, is no fixed point: what one
truncation leaves has a tail of its own, the next one cuts it, and after some hundred cycles little is left whatever τ.
So a tolerance is applied once, to the weights as training finds them. From there on

- a direction is cut when its singular value, relative to the norm of all, has fallen below half of the smallest one
  that was kept then, and below τ: alone it can be left out. The whole of the smallest would be a ratchet, since each
  cycle moves the smallest direction a little;
- a rank grows as far as what would be left out without it exceeds τ.

Without training nothing changes. For Tucker-2 this holds for the singular values of each unfolding of the core.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lrcompress.dlrt.options import DlrtOptions
from lrcompress.dlrt.step import mode_spectra, possible_ranks, squared_errors
from lrcompress.errors import OptionError
from lrcompress.linalg import Factors, rotate_core
from lrcompress.nn import FactoredLayer, PlainLayer, factored_layers
from lrcompress.plan import Choices, RankPolicy, WholeModel
from lrcompress.schemes import Positions, Scheme, dense_macs, dense_parameters, find_scheme

STAYING = 0.5  # see Note [A tolerance during training]


@dataclass(frozen=True)
class Circumstances:
    """What is known of a network beside its factors.

    Attributes:
        positions: how often each layer is applied to one image; without it multiply-accumulates are not looked at.
        macs: multiply-accumulates of the dense network for one image.
        fixed_ranks: of layers whose ranks are not chosen; of a split layer those of all its parts.
        left_out: share of each weight's squared norm that its factorisation has left out already.
    """

    positions: Mapping[str, Positions] = field(default_factory=dict)
    macs: int = 0
    fixed_ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: Mapping[str, float] = field(default_factory=dict)


class RankControl:
    """Chooses the ranks of all layers at once, from their spectra.

    Only ranks that remove parameters, and add no multiply-accumulates, come into question. A policy that would leave
    a layer dense, because nothing within its tolerance removes parameters, gives it the largest such rank. For
    tolerances see Note [A tolerance during training].

    Attributes:
        thresholds: of each layer and mode, what a singular value relative to the norm of all needs to stay; set when
            ranks are first chosen by a tolerance, empty with other policies.

    Args:
        model: the network with its factored layers.
        options: the policy, and the bounds of the ranks.
        circumstances: see there.

    Raises:
        OptionError: if the policy looks at multiply-accumulates, and nothing is known of them.
    """

    def __init__(self, model: nn.Module, options: DlrtOptions, circumstances: Circumstances) -> None:
        layers = factored_layers(model)
        self.policy: RankPolicy = options.policy
        self.thresholds: dict[str, tuple[float, ...]] = {}
        self.layers = {name: _LayerCosts.of(name, layer, options, circumstances) for name, layer in layers.items()}
        others = sum(parameter.numel() for parameter in model.parameters())
        others -= sum(layer.own_parameters() for layer in layers.values())
        if options.policy.needs_macs() and not circumstances.macs:
            raise OptionError(
                "a budget of multiply-accumulates needs to know how many each layer has",
                hint="circumstances=Circumstances(positions, macs), or another budget",
            )
        constraints = {"a smaller --min-rank": options.min_rank > 1, "a smaller --round-ranks": options.round_ranks > 1}
        self.whole = WholeModel(
            others + sum(layer.dense_parameters for layer in self.layers.values()),
            circumstances.macs,
            constraints=tuple(words for words, holds in constraints.items() if holds),
        )

    def smallest_fraction(self) -> float:
        """Returns the share of the dense network's parameters that is left at the smallest ranks that are allowed."""
        saved = sum(layer.dense_parameters - layer.smallest() for layer in self.layers.values())
        return 1 - saved / self.whole.parameters

    def choose(
        self, rotated: Mapping[str, Factors], before: Mapping[str, tuple[int, ...]] | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Returns the ranks of every layer.

        Args:
            rotated: the layers' factors in the singular vectors of their cores.
            before: the ranks as of the last truncation; None takes those of the cores.
        """
        if not rotated:
            return {}
        choices = {name: self.layers[name].choices(factors, self.policy) for name, factors in rotated.items()}
        chosen = self._follow_policy(choices)
        tol = self.policy.guaranteed_tol()
        if tol is None:
            return chosen
        if not self.thresholds:
            self.thresholds = {name: _thresholds(rotated[name], ranks, tol) for name, ranks in chosen.items()}
            return chosen
        modes = {name: tuple(len(sigma) for sigma in mode_spectra(factors)) for name, factors in rotated.items()}
        return {
            name: _follow_spectrum(self.thresholds[name], rotated[name], one, (before or modes)[name], chosen[name])
            for name, one in choices.items()
        }

    def _follow_policy(self, choices: Mapping[str, Choices]) -> dict[str, tuple[int, ...]]:
        left_out = {name: costs.left_out for name, costs in self.layers.items()}
        whole = {
            name: replace(one, squared_errors=left_out[name] + (1 - left_out[name]) * one.squared_errors)
            for name, one in choices.items()
        }
        indices = self.policy.choose(whole, self.whole)
        chosen = {}
        for name, one in choices.items():
            index = indices[name]
            # In the order of their parameters: of options that leave nothing out the first is the smallest.
            chosen[name] = one.option(int(one.squared_errors.argmin()) if index is None else index).ranks
        return chosen


@dataclass(frozen=True)
class _LayerCosts:
    """What one layer costs at any ranks."""

    scheme: Scheme
    plain: PlainLayer
    positions: Positions
    dense_parameters: int
    dense_macs: int
    allowed: "_Bounds"
    left_out: float

    @classmethod
    def of(cls, name: str, layer: FactoredLayer, options: DlrtOptions, circumstances: Circumstances) -> "_LayerCosts":
        plain = layer.plain()
        # A part of a split layer is called with the whole, and its rank given with those of the others.
        whole, _, part = name.rpartition(".parts.")
        positions = circumstances.positions.get(name) or circumstances.positions.get(whole, Positions(0, 0, 0))
        fixed = circumstances.fixed_ranks.get(name)
        if fixed is None and whole in circumstances.fixed_ranks:
            fixed = (circumstances.fixed_ranks[whole][int(part)],)
        bounds = _Bounds(options.min_rank, options.max_rank, options.round_ranks, fixed)
        left_out = circumstances.left_out.get(name, circumstances.left_out.get(whole, 0.0))
        scheme = find_scheme(layer.scheme)
        return cls(scheme, plain, positions, dense_parameters(plain), dense_macs(plain, positions), bounds, left_out)

    def smallest(self) -> int:
        """Returns the number of parameters at the smallest ranks that are allowed."""
        largest = [torch.arange(1, rank + 1) for rank in self.scheme.largest_ranks(self.plain)]
        ranks = self._allowed(torch.cartesian_prod(*largest).reshape(-1, len(largest)))
        return int(self.scheme.parameters(self.plain, ranks)[0])

    def choices(self, rotated: Factors, policy: RankPolicy) -> Choices:
        ranks = self._allowed(possible_ranks(rotated))
        return Choices(
            names=(self.scheme.name,),
            schemes=torch.zeros(len(ranks), dtype=torch.long),
            ranks=ranks,
            squared_errors=squared_errors(rotated, ranks),
            parameters=self.scheme.parameters(self.plain, ranks),
            macs=self.scheme.macs(self.plain, ranks, self.positions),
            useful=torch.ones(len(ranks), dtype=torch.bool),
            dense_parameters=self.dense_parameters,
            dense_macs=self.dense_macs,
            wanted=_nearest(ranks, policy.wanted_rank()),
            may_stay_dense=False,
        )

    def _allowed(self, ranks: Int[Tensor, "k modes"]) -> Int[Tensor, "j modes"]:
        """Returns those of the ranks that come into question, in the order of their parameters."""
        parameters = self.scheme.parameters(self.plain, ranks)
        macs = self.scheme.macs(self.plain, ranks, self.positions)
        useful = (parameters < self.dense_parameters) & (macs <= self.dense_macs)
        kept = self.allowed.select(ranks, useful, parameters)
        return ranks[kept[parameters[kept].sort(stable=True).indices]]


@dataclass(frozen=True)
class _Bounds:
    """Which ranks a layer may have."""

    smallest: int
    largest: int | None
    multiple: int
    fixed: tuple[int, ...] | None

    def select(self, ranks: Int[Tensor, "k modes"], useful: Tensor, parameters: Int[Tensor, "k"]) -> Int[Tensor, "j"]:
        """Returns the indices of the allowed ranks, of the smallest one if there are none."""
        most = ranks.amax(0)
        if self.fixed is not None:
            wanted = torch.tensor(self.fixed).minimum(most)
            return (ranks == wanted).all(1).nonzero()[:, 0]
        allowed = (ranks >= most.clamp_max(self.smallest)).all(1)
        if self.largest is not None:
            allowed &= (ranks <= self.largest).all(1)
        # Where no multiple removes parameters, doing that comes first.
        for wanted in ((ranks % self.multiple == 0).all(1), torch.ones_like(useful)):
            chosen = (allowed & useful & wanted).nonzero()[:, 0]
            if len(chosen):
                return chosen
        chosen = allowed.nonzero()[:, 0]
        return chosen[parameters[chosen].argmin()][None]


def _thresholds(rotated: Factors, ranks: tuple[int, ...], tol: float) -> tuple[float, ...]:
    """Returns what a relative singular value of each mode needs to stay, once the core has been cut to ranks."""
    core = rotate_core(rotated.S[:, : ranks[0], : ranks[-1]])[1]
    return tuple(min(tol, STAYING * float(sigma[-1])) for sigma in mode_spectra(rotated._replace(S=core)))


def _follow_spectrum(
    thresholds: tuple[float, ...],
    rotated: Factors,
    choices: Choices,
    before: tuple[int, ...],
    within: tuple[int, ...],
) -> tuple[int, ...]:
    """Returns the smallest allowed ranks that a spectrum asks for. See Note [A tolerance during training].

    Args:
        thresholds: what a relative singular value of each mode needs to stay.
        rotated: the factors in the singular vectors of their core.
        choices: the allowed ranks.
        before: the ranks as of the last truncation.
        within: the smallest ranks whose tail is within the tolerance.
    """
    counts = [int((sigma >= least).sum()) for sigma, least in zip(mode_spectra(rotated), thresholds, strict=True)]
    wanted = [max(1, min(count, max(old, enough))) for count, old, enough in zip(counts, before, within, strict=True)]
    enough = (choices.ranks[:, : len(wanted)] >= torch.tensor(wanted)).all(1).nonzero()[:, 0]
    # In the order of their parameters.
    return choices.option(int(enough[0]) if len(enough) else int(choices.squared_errors.argmin())).ranks


def _nearest(ranks: Int[Tensor, "k modes"], wanted: int | None) -> int | None:
    """Returns the index of the option that comes nearest to a rank in every mode."""
    return None if wanted is None else int((ranks - wanted).abs().sum(1).argmin())
