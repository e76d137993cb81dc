import json
import math
import sys

import pytest
import timm
import torch
from artifacts import disturbed
from networks import matrix_with_spectrum, random_matrix, relative_difference, with_weight
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.factorize import factorize
from lrcompress.measure import count_macs, count_parameters
from lrcompress.nn import dense_weight, expose_, plain_layer, twin
from lrcompress.plan import (
    Budget,
    Decomposer,
    Energy,
    FullRank,
    Smallest,
    Tolerance,
    TrainingStart,
    UniformRank,
    WholeModel,
    WideStart,
    make_plan,
)
from lrcompress.plan.choices import Choices, list_choices
from lrcompress.schemes import Call, find_scheme

WHOLE = WholeModel(10**6, 10**6)  # of no matter to most policies


def choices_of(weight, *, calls=1, **options):
    """All ranks of a linear layer that is applied to some rows."""
    m, n = weight.shape
    layer = with_weight(nn.Linear(n, m, bias=False, dtype=torch.float64), weight, None)
    matrix = find_scheme("matrix")
    return list_choices(layer, [Call(calls, (), ())], {matrix: matrix.decompose(layer)}, **options)


def spectrum(sigma, m=None, n=None, **options):
    return choices_of(matrix_with_spectrum(sigma, m or len(sigma), n or len(sigma)), **options)


def ranks_of(policy, choices, whole=WHOLE):
    """The rank that a policy gives every layer, None where it stays dense."""
    chosen = policy.choose(choices, whole)
    assert set(chosen) == set(choices)
    return {
        name: None if index is None else choices[name].option(index).ranks[0] for name, index in chosen.items()
    }  # fmt: skip


def largest_useful(m, n):
    return (m * n - 1) // (m + n)


@pytest.mark.parametrize("tol", [0.001, 0.1, 0.5, 0.99])
def test_tolerance_chooses_the_smallest_useful_rank_that_keeps_it_in_every_layer(tol):
    weights = {f"layer {index}": random_matrix(12, 8 + index, seed=index) for index in range(4)}
    ranks = ranks_of(Tolerance(tol), {name: choices_of(weight) for name, weight in weights.items()})
    for name, weight in weights.items():
        sigma = torch.linalg.svdvals(weight)
        needed = next(rank for rank in range(1, len(sigma) + 1) if sigma[rank:].norm() <= tol * sigma.norm())
        assert ranks[name] == (needed if needed <= largest_useful(*weight.shape) else None)


@pytest.mark.parametrize("tol", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("policy", [Tolerance, TrainingStart])
def test_a_tolerance_out_of_range_is_refused_with_the_range(policy, tol):
    with pytest.raises(OptionError, match=f"--tol must lie strictly between 0 and 1, got {tol}") as refused:
        policy(tol)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("max_rank", "expected"),
    # Flat 8×8 spectra: the tolerance would need 8, useful are 3 (3·16 < 64).
    [
        (None, {"flat": 3, "steep": 1, "tiny": None}),
        (2, {"flat": 2, "steep": 1, "tiny": None}),
        (50, {"flat": 3, "steep": 1, "tiny": None}),
    ],
)
def test_training_starts_at_the_tolerance_but_never_above_what_removes_parameters(max_rank, expected):
    choices = {"flat": spectrum([1.0] * 8), "steep": spectrum([1.0] + [1e-3] * 7), "tiny": spectrum([1.0])}
    assert ranks_of(TrainingStart(0.1, max_rank=max_rank), choices) == expected


SPATIAL_KERNEL = torch.einsum("or,ip,rq->oipq", random_matrix(8, 2), random_matrix(6, 3), random_matrix(2, 3))


@pytest.mark.parametrize("max_rank", [None, 4, 2, 1])
@pytest.mark.parametrize("tol", [0.01, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kernel", [random_matrix(8, 54).reshape(8, 6, 3, 3), SPATIAL_KERNEL], ids=["any", "separable"])
def test_training_starts_at_the_cheapest_option_of_any_scheme_within_the_tolerance_else_at_the_nearest(
    kernel, tol, max_rank
):
    layer = with_weight(nn.Conv2d(6, 8, 3, bias=False, dtype=torch.float64), kernel.double(), None)
    schemes = [find_scheme(name) for name in ("matrix", "spatial", "tucker2")]
    choices = list_choices(layer, [Call(1, (9, 9), (7, 7))], {scheme: scheme.decompose(layer) for scheme in schemes})
    options = [choices.option(index) for index in range(len(choices.ranks)) if bool(choices.useful[index])]
    small = [one for one in options if max_rank is None or max(one.ranks) <= max_rank]
    within = [one for one in small if one.relative_error <= tol]
    chosen = choices.option(TrainingStart(tol, max_rank=max_rank).choose({"one": choices}, WHOLE)["one"])
    assert chosen in small
    if within:
        assert chosen in within
        assert chosen.parameters == min(one.parameters for one in within)
    else:
        assert chosen.relative_error == min(one.relative_error for one in small)


def test_training_does_not_start_with_ranks_that_remove_parameters_in_no_scheme():
    layer = nn.Conv2d(2, 1, 3, bias=False, dtype=torch.float64)
    matrix = find_scheme("matrix")
    choices = list_choices(layer, [Call(1, (9, 9), (7, 7))], {matrix: matrix.decompose(layer)})
    assert TrainingStart(0.9).choose({"one": choices}, WHOLE) == {"one": None}
    assert TrainingStart(0.9).why_dense(choices) == "no rank removes parameters without adding multiply-accumulates"


@pytest.mark.parametrize(
    ("max_rank", "expected"),
    [
        (None, 12),  # 15·64 < 32·32: the largest multiple that is useful
        (8, 8),
        (6, 4),
    ],
)
def test_training_starts_at_a_rounded_rank_within_the_largest(max_rank, expected):
    choices = {"flat": spectrum([1.0] * 32, round_ranks=4)}
    assert ranks_of(TrainingStart(0.1, max_rank=max_rank), choices) == {"flat": expected}


def test_full_rank_takes_all_singular_values_even_where_that_adds_parameters():
    policy = FullRank()
    assert policy.wanted_rank() == sys.maxsize
    choices = {
        "a": spectrum([1.0, 0.0, 0.0], wanted_rank=sys.maxsize),
        "b": spectrum([2.0], 1, 9, wanted_rank=sys.maxsize),
    }
    assert ranks_of(policy, choices) == {"a": 3, "b": 1}
    assert policy.may_enlarge()
    assert not any(other.may_enlarge() for other in (Tolerance(0.1), TrainingStart(0.1), Smallest(), UniformRank(3)))


@pytest.mark.parametrize(
    ("policy", "expected", "tol"),
    [
        (Tolerance(0.1), {"name": "tolerance", "tol": 0.1}, 0.1),
        (TrainingStart(0.1, max_rank=9), {"name": "training start", "tol": 0.1, "max_rank": 9}, None),
        (FullRank(), {"name": "full rank"}, None),
        (Smallest(), {"name": "smallest"}, None),
        (UniformRank(3), {"name": "uniform rank", "rank": 3}, None),
        (Budget(macs=7), {"name": "budget", "macs": 7}, None),
        (Energy(0.75), {"name": "energy", "energy": 0.75}, 0.5),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_policy_describes_itself_in_json_and_says_what_it_guarantees(policy, expected, tol):
    assert json.loads(json.dumps(policy.describe())) == expected
    assert policy.guaranteed_tol() == tol


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_energy_keeps_its_share_of_the_squared_norm_with_the_fewest_ranks(energy):
    weight = random_matrix(40, 60) * torch.logspace(0, -9, 60, dtype=torch.float64)
    sigma = torch.linalg.svdvals(weight)
    rank = ranks_of(Energy(energy), {"a": choices_of(weight)})["a"]
    kept = sigma.square().cumsum(0) / sigma.square().sum()
    assert kept[rank - 1] >= energy
    assert rank == 1 or kept[rank - 2] < energy
    assert sigma[rank:].norm() <= Energy(energy).guaranteed_tol() * sigma.norm()


def test_one_rank_for_all_is_cut_to_what_a_layer_has_and_left_out_where_it_is_not_useful():
    choices = {
        "wide": spectrum([3.0, 2.0, 1.0] * 4, wanted_rank=4),
        "full": spectrum([3.0, 2.0], 2, 60, wanted_rank=4),
        "narrow": spectrum([2.0], 1, 9, wanted_rank=4),
    }
    assert UniformRank(4).wanted_rank() == 4
    assert ranks_of(UniformRank(4), choices) == {"wide": 4, "full": None, "narrow": None}


def test_the_smallest_model_has_the_cheapest_useful_option_everywhere():
    choices = {"a": spectrum([3.0] * 9), "narrow": spectrum([2.0], 1, 9), "rounded": spectrum([1.0] * 9, round_ranks=2)}
    assert ranks_of(Smallest(), choices) == {"a": 1, "narrow": None, "rounded": 2}


SIZES = {"a": (20, 30), "b": (16, 16), "c": (12, 40)}


def some_choices(*, calls=(1, 1, 1)):
    """Three layers with steep spectra."""
    found = {}
    for (name, (m, n)), times in zip(SIZES.items(), calls, strict=True):
        sigma = torch.linalg.svdvals(random_matrix(m, n, seed=m)) ** 3
        found[name] = spectrum(sigma.tolist(), m, n, calls=times)
    return found


def cost_of(ranks, calls=(1, 1, 1)):
    """Of the whole model with 500 parameters beside the layers."""
    cost = 500
    for (name, (m, n)), times in zip(SIZES.items(), calls, strict=True):
        cost += times * (m * n if ranks[name] is None else ranks[name] * (m + n))
    return cost


DENSE = dict.fromkeys(SIZES)


@pytest.mark.parametrize("fraction", [0.4, 0.5, 0.75, 0.9, 0.99])
def test_a_budget_of_parameters_is_kept_and_used(fraction):
    choices, whole = some_choices(), cost_of(DENSE)
    ranks = ranks_of(Budget(fraction=fraction), choices, WholeModel(whole, 0))
    used = cost_of(ranks)
    assert used <= fraction * whole
    for name, (m, n) in SIZES.items():  # one rank more does not fit any more, nor the dense layer
        if ranks[name] is not None:
            assert used + min(m + n, m * n - ranks[name] * (m + n)) > fraction * whole
    assert ranks == ranks_of(Budget(parameters=int(fraction * whole)), choices, WholeModel(whole, 0))


def test_a_budget_of_macs_counts_how_often_a_layer_is_applied():
    calls = (100, 1, 1)
    choices, whole = some_choices(calls=calls), cost_of(DENSE, calls)
    ranks = ranks_of(Budget(macs=whole // 2), choices, WholeModel(0, whole))
    assert whole // 2 - 5000 < cost_of(ranks, calls) <= whole // 2
    smallest = {"a": 1, "b": 1, "c": 1}
    assert ranks_of(Budget(macs=cost_of(smallest, calls)), choices, WholeModel(0, whole)) == smallest


def test_what_given_ranks_have_saved_is_counted_in():
    choices, whole = some_choices(), cost_of(DENSE) + 1000  # a layer of 1000 whose rank is given
    plain = ranks_of(Budget(parameters=1200), choices, WholeModel(cost_of(DENSE), 0))
    given = ranks_of(Budget(parameters=1200 + 300), choices, WholeModel(whole, 0, saved_parameters=700))
    assert plain == given


def test_a_wide_start_enlarges_only_what_the_budget_factorises():
    choices = {
        "flat": spectrum([1.0] * 20),
        "steep": spectrum([10.0 * 0.5**index for index in range(20)]),
        "tiny": spectrum([1.0] * 3),
    }
    whole = WholeModel(400 + 400 + 9, 0)
    budget = Budget(parameters=400)
    final, start = ranks_of(budget, choices, whole), ranks_of(WideStart(budget, 1.6), choices, whole)
    assert final["flat"] is not None and final["steep"] is not None
    # With so much room the budget itself would leave a layer dense.
    assert None in ranks_of(budget.times(1.6), choices, whole).values()
    assert {name for name, rank in start.items() if rank is None} == {name for name in final if final[name] is None}
    spent = [sum(40 * rank for rank in ranks.values() if rank) for ranks in (final, start)]
    assert spent[0] < spent[1] <= 1.6 * 400
    assert ranks_of(WideStart(budget, 1.0), choices, whole) == final


def two_forms():
    """A layer whose first form is the better one when it may be large, and whose second one is when it is small."""
    return Choices(
        names=("matrix", "tucker2"),
        schemes=torch.tensor([1, 1, 0, 0, 1]),
        ranks=torch.tensor([[1, 1, 0], [2, 2, 0], [3, 0, 0], [6, 0, 0], [4, 4, 0]]),
        squared_errors=torch.tensor([0.5, 0.3, 0.2, 0.1, 0.28], dtype=torch.float64),
        parameters=torch.tensor([10, 20, 30, 60, 70]),
        macs=torch.tensor([10, 20, 30, 60, 70]),
        useful=torch.ones(5, dtype=torch.bool),
        dense_parameters=100,
        dense_macs=100,
    )


def test_a_wide_start_keeps_the_form_of_every_layer():
    choices, budget, whole = {"a": two_forms()}, Budget(parameters=25), WholeModel(100, 0)
    assert choices["a"].option(budget.choose(choices, whole)["a"]).scheme == "tucker2"
    assert choices["a"].option(budget.times(3.0).choose(choices, whole)["a"]).scheme == "matrix"
    start = choices["a"].option(WideStart(budget, 3.0).choose(choices, whole)["a"])
    assert (start.scheme, start.ranks) == ("tucker2", (4, 4))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(fraction=0.2), Budget(fraction=0.5)),
        (Budget(fraction=0.9), Budget(fraction=0.999)),
        (Budget(parameters=10), Budget(parameters=25)),
        (Budget(macs=7), Budget(macs=18)),
    ],
    ids=str,
)
def test_a_budget_can_be_multiplied(budget, expected):
    assert budget.times(2.5) == expected


def test_the_hint_of_a_budget_names_what_else_keeps_layers_large():
    with pytest.raises(OptionError) as refused:
        Budget(parameters=600).choose(some_choices(), WholeModel(1836, 0, constraints=("larger holes", "no bolts")))
    assert refused.value.hint == "raise the budget or allow more with larger holes, no bolts"
    with pytest.raises(OptionError) as refused:
        Budget(parameters=20).choose({"tiny": spectrum([1.0] * 2)}, WholeModel(30, 0))
    assert refused.value.hint == "no layer of this network can become smaller"


@pytest.mark.parametrize("policy", [Budget(fraction=0.1), Budget(parameters=600), Budget(macs=600)], ids=str)
def test_a_budget_below_rank_one_everywhere_is_refused_with_the_smallest_that_is_possible(policy):
    choices = some_choices()
    smallest = 500 + 50 + 32 + 52
    with pytest.raises(
        OptionError, match=rf"the smallest possible model has {smallest} of 1,836 \(34.5 %\)"
    ) as refused:
        policy.choose(choices, WholeModel(1836, 1836))
    assert "cannot be met" in refused.value.message
    assert ("multiply-accumulates" in refused.value.message) == (policy.macs is not None)
    assert refused.value.hint == "raise the budget"
    ranks = ranks_of(Budget(parameters=smallest), choices, WholeModel(1836, 0))
    assert ranks == ranks_of(Smallest(), choices) == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Energy(1.0), "--energy must lie strictly between 0 and 1, got 1.0"),
        (lambda: Energy(float("nan")), "--energy"),
        (lambda: UniformRank(0), "--rank must be at least 1, got 0"),
        (lambda: Budget(fraction=0.0), "--budget must lie strictly between 0 and 1, got 0.0"),
        (lambda: Budget(fraction=25), "--budget must lie strictly between 0 and 1, got 25"),
        (lambda: Budget(parameters=0), "must be positive"),
        (lambda: Budget(macs=-5), "must be positive"),
        (Budget, "one measure"),
        (lambda: Budget(fraction=0.5, macs=5), "one measure"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(OptionError, match=message) as refused:
        make()
    assert refused.value.hint


# Real networks, the whole way: what a policy promises is measured on the low-rank model.

REAL = {
    "resnet18": (lambda: timm.create_model("resnet18", channels=(16, 32, 64, 128), num_classes=10), (3, 64, 64)),
    "vit_tiny": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10), (3, 32, 32),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=REAL)
def real(request):
    """A network, the size of its images, and a decomposer that has done its work."""
    make, size = REAL[request.param]
    torch.manual_seed(0)
    model = disturbed(make())
    decomposer = Decomposer()
    make_plan(model, Smallest(), input_size=size, decomposer=decomposer)
    return model, size, decomposer


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("measure", ["fraction", "parameters", "macs"])
def test_a_budget_is_met_to_one_percent_by_the_network_that_is_made(real, measure, share):
    model, size, decomposer = real
    total = count_macs(model, size) if measure == "macs" else count_parameters(model)
    policy = Budget(fraction=share) if measure == "fraction" else Budget(**{measure: int(share * total)})
    plan = make_plan(model, policy, input_size=size, decomposer=decomposer)
    low_rank = factorize(model, plan, decomposer=decomposer)
    left = count_macs(low_rank, size) if measure == "macs" else count_parameters(low_rank)
    assert 0.99 * share * total < left <= share * total
    assert count_parameters(low_rank) == count_parameters(model) - plan.removed_parameters()
    assert count_macs(low_rank, size) <= count_macs(model, size)


@pytest.mark.parametrize("measure", ["parameters", "macs"])
def test_the_smallest_possible_network_is_the_one_an_impossible_budget_names(real, measure):
    model, size, decomposer = real
    options = {"input_size": size, "decomposer": decomposer}
    with pytest.raises(OptionError, match="cannot be met: the smallest possible model has") as refused:
        make_plan(model, Budget(**{measure: 1000}), **options)
    smallest = int(refused.value.message.split("model has ")[1].split(" of ")[0].replace(",", ""))
    low_rank = factorize(model, make_plan(model, Budget(**{measure: smallest}), **options), decomposer=decomposer)
    assert (count_macs(low_rank, size) if measure == "macs" else count_parameters(low_rank)) == smallest
    with pytest.raises(OptionError, match="cannot be met"):
        make_plan(model, Budget(**{measure: smallest - 1}), **options)
    if measure == "parameters":
        least = factorize(model, make_plan(model, Smallest(), **options), decomposer=decomposer)
        assert count_parameters(least) == smallest


def decaying_(model):
    """Gives every layer a steep spectrum in every unfolding, so that each scheme can be useful."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                weight = module.weight
                for axis in range(weight.ndim):
                    decay = torch.logspace(0, -1.5, weight.shape[axis])
                    weight.mul_(decay.reshape(-1, *[1] * (weight.ndim - axis - 1)))
                weight.mul_(weight[0].numel() ** -0.5 / weight.std().clamp_min(1e-9))


@pytest.mark.parametrize("scheme", ["auto", "matrix", "spatial", "tucker2", "split"])
@pytest.mark.parametrize(("make", "size"), REAL.values(), ids=REAL.keys())
def test_every_layer_is_within_what_is_guaranteed_measured_from_its_weights(make, size, scheme):
    torch.manual_seed(0)
    policy = Tolerance(0.2)
    model = make().eval()
    decaying_(model)
    decomposer = Decomposer(wanted=scheme)
    plan = make_plan(model, policy, input_size=size, decomposer=decomposer)
    low_rank, exposed = factorize(model, plan, decomposer=decomposer), expose_(twin(model))
    schemes = {layer.scheme for layer in plan.factorized().values()}
    fitting = {"spatial", "tucker2"} if size == (3, 64, 64) else {"split"}
    assert scheme in schemes or scheme not in fitting
    assert len(plan.factorized()) >= 8
    for name, layer in plan.factorized().items():
        weight = plain_layer(exposed.get_submodule(name)).weight
        error = relative_difference(dense_weight(low_rank.get_submodule(name)), weight)
        assert error <= policy.guaranteed_tol() * (1 + 1e-5)
        assert error == pytest.approx(layer.relative_error, rel=1e-3, abs=1e-5)


def test_the_guarantee_of_an_energy_is_that_of_its_tolerance():
    assert Energy(0.99).guaranteed_tol() == pytest.approx(0.1)
    assert math.isclose(Energy(0.75).guaranteed_tol(), 0.5)
