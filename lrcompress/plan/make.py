"""From a dense model to a plan."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.errors import CheckpointError, OptionError
from lrcompress.linalg import singular_values
from lrcompress.measure import count_macs, count_parameters
from lrcompress.nn import dense_matrix, is_matrix_layer
from lrcompress.plan.layers import Candidate, find_layers, match_layers
from lrcompress.plan.plan import CompressionPlan, LayerPlan
from lrcompress.plan.policy import RankPolicy, Spectrum, WholeModel


def make_plan(
    model: nn.Module,
    policy: RankPolicy,
    *,
    input_size: tuple[int, int, int],
    include_first: bool = False,
    include_classifier: bool = False,
    exclude: Sequence[str] = (),
    layer_ranks: Mapping[str, int] | None = None,
    allow_zero_layers: bool = False,
    output_grams: Mapping[str, Float[Tensor, "_ _"]] | None = None,
) -> CompressionPlan:
    """Returns what is to be done with each layer; the model is not changed.

    A layer is factorised only where that removes parameters: r(m + n) < mn for an m×n matrix with S folded in.

    Args:
        model: the dense network, taking normalised images.
        policy: chooses the ranks.
        input_size: (channels, height, width) of its images.
        include_first: whether the first layer of the forward pass may be factorised.
        include_classifier: whether the last layer of the forward pass may be factorised.
        exclude: patterns of the names of layers that stay dense.
        layer_ranks: ranks by patterns of names, instead of the policy's; of several that match the last one holds.
        allow_zero_layers: leave layers dense whose weights are all zero, instead of refusing the model.
        output_grams: the metric of the truncation by layer, see `output_grams`; without it the weights alone count.

    Raises:
        OptionError: if a pattern matches nothing, a given rank would not remove parameters, or the policy cannot be
            met.
        CheckpointError: if a layer is all zero: usually the checkpoint is damaged or was never trained.
    """
    candidates = find_layers(
        model, input_size, include_first=include_first, include_classifier=include_classifier, exclude=exclude
    )
    spectra: dict[str, Spectrum] = {}
    zero: set[str] = set()
    for candidate in candidates:
        if candidate.reason or not is_matrix_layer(candidate.module):
            continue
        matrix = dense_matrix(candidate.module)
        m, n = matrix.shape
        if torch.count_nonzero(matrix) == 0:
            zero.add(candidate.name)
        else:
            sigma = singular_values(matrix, output_gram=(output_grams or {}).get(candidate.name))
            spectra[candidate.name] = Spectrum(sigma, m, n, candidate.positions)
    if zero and not allow_zero_layers:
        raise CheckpointError(
            f"all weights of `{min(zero)}` are zero" + (f", and of {len(zero) - 1} more layers" * (len(zero) > 1)),
            hint="check the checkpoint; --allow-zero-layers keeps such layers as they are",
        )
    given = _given_ranks(layer_ranks or {}, spectra)
    saved = {
        name: spectra[name].m * spectra[name].n - r * (spectra[name].m + spectra[name].n) for name, r in given.items()
    }
    whole = WholeModel(
        count_parameters(model),
        count_macs(model, input_size),
        saved_parameters=sum(saved.values()),
        saved_macs=sum(spectra[name].positions * count for name, count in saved.items()),
    )
    ranks = given | policy.choose_ranks({name: s for name, s in spectra.items() if name not in given}, whole)
    layers = tuple(
        _plan_layer(candidate, spectra.get(candidate.name), ranks.get(candidate.name), policy)
        for candidate in candidates
    )
    described = policy.describe() | ({"layer_ranks": dict(layer_ranks)} if layer_ranks else {})
    return CompressionPlan(policy=described, layers=layers)


def _given_ranks(layer_ranks: Mapping[str, int], spectra: Mapping[str, Spectrum]) -> dict[str, int]:
    """Returns the rank of each layer that a pattern matches."""
    ranks: dict[str, int] = {}
    for pattern, rank in layer_ranks.items():
        for name in match_layers(pattern, spectra):
            largest = spectra[name].largest_useful_rank
            if not 1 <= rank <= largest:
                hint = f"a rank from 1 to {largest}" if largest else "it stays dense: no rank removes parameters"
                raise OptionError(f"`{name}` cannot have rank {rank}", hint=hint)
            ranks[name] = rank
    return ranks


def _plan_layer(candidate: Candidate, spectrum: Spectrum | None, rank: int | None, policy: RankPolicy) -> LayerPlan:
    name, kind, shape = candidate.name, type(candidate.module).__name__, candidate.weight_shape
    if spectrum is None or rank is None:
        return LayerPlan(name, kind, shape, "dense", reason=candidate.reason or "all its weights are zero")
    useful = spectrum.largest_useful_rank
    if rank > useful and not policy.may_enlarge():
        reason = f"rank {rank} of {len(spectrum.sigma)} would be needed, which does not remove parameters"
        if useful:
            reason += f"; rank {useful} would, at a relative error of {spectrum.relative_error(useful):.3f}"
        return LayerPlan(name, kind, shape, "dense", reason=reason)
    return LayerPlan(name, kind, shape, "matrix", rank=rank, relative_error=spectrum.relative_error(rank))
