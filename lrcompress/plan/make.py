"""From a dense model to a plan."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lrcompress.errors import CheckpointError, OptionError
from lrcompress.measure import count_macs, count_parameters
from lrcompress.plan.choices import Choices, Option
from lrcompress.plan.decompose import Decomposer
from lrcompress.plan.layers import Candidate, find_layers, match_layers
from lrcompress.plan.plan import CompressionPlan, LayerPlan
from lrcompress.plan.policy import RankPolicy, WholeModel


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
    decomposer: Decomposer | None = None,
) -> CompressionPlan:
    """Returns what is to be done with each layer; the model is not changed.

    A layer is factorised only where that removes parameters and adds no multiply-accumulates.

    Args:
        model: the dense network, taking normalised images.
        policy: chooses schemes and ranks.
        input_size: (channels, height, width) of its images.
        include_first: whether the first layer of the forward pass may be factorised.
        include_classifier: whether the last layer of the forward pass may be factorised.
        exclude: patterns of the names of layers that stay dense.
        layer_ranks: ranks by patterns of names, instead of the policy's; of several that match the last one holds.
        allow_zero_layers: leave layers dense whose weights are all zero, instead of refusing the model.
        decomposer: with which schemes and in which metric; hand it to `factorize` too, which then need not decompose
            again.

    Raises:
        OptionError: if a pattern matches nothing, a given rank would not remove parameters, or the policy cannot be
            met.
        CheckpointError: if a layer is all zero: usually the checkpoint is damaged or was never trained.
    """
    decomposer = decomposer or Decomposer()
    candidates = find_layers(
        model, input_size, include_first=include_first, include_classifier=include_classifier, exclude=exclude
    )
    reasons = {one.name: one.reason for one in candidates}
    free = [one for one in candidates if not reasons[one.name]]
    zero = [one.name for one in free if one.layer is not None and torch.count_nonzero(one.layer.weight) == 0]
    if zero and not allow_zero_layers:
        raise CheckpointError(
            f"all weights of `{min(zero)}` are zero" + _and_more(len(zero) - 1),
            hint="check the checkpoint; --allow-zero-layers keeps such layers as they are",
        )
    reasons |= dict.fromkeys(zero, "all its weights are zero")
    free = [one for one in free if one.name not in zero]
    dense = {name: reason for name, reason in reasons.items() if reason}
    given = _given_options(layer_ranks or {}, free, dense, decomposer, policy.scheme())
    others = [one for one in free if one.name not in given]
    choices = decomposer.choices(others, wanted_rank=policy.wanted_rank(), scheme=policy.scheme())
    macs = count_macs(model, input_size) if policy.needs_macs() else 0
    constraints = {
        "--include-first": not include_first,
        "--include-classifier": not include_classifier,
        "fewer exclusions": bool(exclude),
        "a smaller --round-ranks": decomposer.round_ranks > 1,
        "a smaller or no --layer-rank": bool(given),
    }
    whole = _measure(model, given, macs, [words for words, holds in constraints.items() if holds])
    chosen = policy.choose(choices, whole)
    options: dict[str, Option] = {name: option for name, (option, _) in given.items()}
    for name, index in chosen.items():
        if index is not None and (bool(choices[name].useful[index]) or policy.may_enlarge()):
            options[name] = choices[name].option(index)
        else:
            reasons[name] = policy.why_dense(choices[name])
    described = policy.describe() | ({"layer_ranks": dict(layer_ranks)} if layer_ranks else {})
    layers = tuple(_plan_layer(one, options.get(one.name), reasons[one.name]) for one in candidates)
    return CompressionPlan(policy=described, layers=layers)


def _and_more(count: int) -> str:
    return f", and of {count} more layer{'s' * (count > 1)}" * (count > 0)


def _given_options(
    layer_ranks: Mapping[str, int],
    candidates: Sequence[Candidate],
    dense: Mapping[str, str],
    decomposer: Decomposer,
    scheme: str | None,
) -> dict[str, tuple[Option, Choices]]:
    """Returns the option of each layer that a pattern matches, and the options it is one of."""
    ranks: dict[str, int] = {}
    for pattern, rank in layer_ranks.items():
        ranks |= dict.fromkeys(match_layers(pattern, [one.name for one in candidates], dense), rank)
    found: dict[str, tuple[Option, Choices]] = {}
    for candidate in candidates:
        if candidate.name not in ranks:
            continue
        rank = ranks[candidate.name]
        choices = decomposer.choices([candidate], wanted_rank=max(1, rank), scheme=scheme)[candidate.name]
        assert choices.wanted is not None  # a rank was asked for
        if rank < 1 or not bool(choices.useful[choices.wanted]):
            useful = choices.ranks[choices.useful & (choices.schemes == 0)]
            largest = int(useful.max()) if len(useful) else 0
            hint = f"a rank from 1 to {largest}" if largest else "it stays dense: no rank removes parameters"
            raise OptionError(f"`{candidate.name}` cannot have rank {rank}", hint=hint)
        found[candidate.name] = choices.option(choices.wanted), choices
    return found


def _measure(
    model: nn.Module, given: Mapping[str, tuple[Option, Choices]], macs: int, constraints: Sequence[str]
) -> WholeModel:
    return WholeModel(
        count_parameters(model),
        macs,
        saved_parameters=sum(choices.dense_parameters - option.parameters for option, choices in given.values()),
        saved_macs=sum(choices.dense_macs - option.macs for option, choices in given.values()),
        constraints=tuple(constraints),
    )


def _plan_layer(candidate: Candidate, option: Option | None, reason: str) -> LayerPlan:
    if option is None:
        return LayerPlan(candidate.name, candidate.kind, candidate.weight_shape, "dense", reason=reason)
    return LayerPlan(
        candidate.name,
        candidate.kind,
        candidate.weight_shape,
        option.scheme,
        ranks=option.ranks,
        relative_error=option.relative_error,
        parameters=option.parameters,
        dense_parameters=candidate.parameters,
    )
