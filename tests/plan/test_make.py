from dataclasses import replace

import pytest
import torch
from networks import matrix_with_spectrum, snapshot, tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.errors import CheckpointError, OptionError
from lrcompress.factorize import factorize
from lrcompress.measure import count_macs, count_parameters
from lrcompress.plan import Budget, Decomposer, FullRank, Smallest, Tolerance, TrainingStart, UniformRank, make_plan

SIZE = (3, 4, 4)


def mlp_with_spectra(first, inner):
    """The tiny network with prescribed singular values in its two inner layers."""
    model = tiny_mlp()
    with torch.no_grad():
        model[1].weight.copy_(matrix_with_spectrum(first, 40, 48))
        model[4].weight.copy_(matrix_with_spectrum(inner, 24, 40))
    return model


def by_name(plan):
    return {layer.name: layer for layer in plan.layers}


def test_ranks_and_errors_are_those_of_the_prescribed_spectrum():
    model = mlp_with_spectra([4.0, 2.0, 1.0, 0.1], [3.0, 4.0][::-1])
    plan = by_name(make_plan(model, Tolerance(0.3), input_size=SIZE, include_first=True))
    norm = (16 + 4 + 1 + 0.01) ** 0.5
    assert plan["1"].ranks == (2,)  # the tail is 1.005 of 4.584
    assert plan["1"].relative_error == pytest.approx((1 + 0.01) ** 0.5 / norm, rel=1e-5)
    assert plan["1"].parameters == 2 * (40 + 48)
    assert plan["4"].ranks == (2,)
    assert plan["4"].relative_error == pytest.approx(0, abs=1e-6)
    assert plan["6"].scheme == "dense"


@pytest.mark.parametrize(("rank", "scheme"), [(14, "matrix"), (15, "dense")])
def test_a_layer_is_factorised_exactly_where_that_removes_parameters(rank, scheme):
    # 24×40: 14·64 = 896 < 960 = 15·64.
    model = mlp_with_spectra([1.0], [1.0] * rank)
    layer = by_name(make_plan(model, Tolerance(0.01), input_size=SIZE))["4"]
    assert layer.scheme == scheme
    if scheme == "dense":
        # The fifteen singular values are equal; rank 14 leaves one of them out.
        assert layer.reason == (
            "what was asked for does not remove parameters; of what does, the smallest relative error is "
            f"{(1 / 15) ** 0.5:.3f}"
        )
        assert (layer.ranks, layer.relative_error, layer.parameters) == ((), None, None)


def test_the_tolerance_that_a_reason_names_factorises_the_layer():
    model = mlp_with_spectra([1.0], [1.0] * 24)
    reason = by_name(make_plan(model, Tolerance(0.1), input_size=SIZE))["4"].reason
    error = float(reason.rsplit(" ", 1)[1])
    assert by_name(make_plan(model, Tolerance(error - 0.01), input_size=SIZE))["4"].scheme == "dense"
    assert by_name(make_plan(model, Tolerance(error + 0.01), input_size=SIZE))["4"].scheme == "matrix"


def test_full_rank_factorises_even_where_that_adds_parameters():
    layer = by_name(make_plan(tiny_mlp(), FullRank(), input_size=SIZE))["4"]
    assert (layer.scheme, layer.ranks) == ("matrix", (24,))
    assert layer.relative_error == 0


def test_training_starts_a_layer_that_would_stay_dense_without_data():
    model = mlp_with_spectra([1.0], [1.0] * 24)
    assert by_name(make_plan(model, Tolerance(0.1), input_size=SIZE))["4"].scheme == "dense"
    started = by_name(make_plan(model, TrainingStart(0.1), input_size=SIZE))["4"]
    assert started.ranks == (14,)
    assert started.relative_error == pytest.approx((10 / 24) ** 0.5, rel=1e-5)


def test_every_layer_is_in_the_plan_with_its_kind_its_shape_and_a_reason_where_dense():
    plan = make_plan(tiny_cnn(), Tolerance(0.1), input_size=(3, 8, 8))
    assert [(layer.name, layer.kind, layer.dense_shape) for layer in plan.layers] == [
        ("0", "Conv2d", (8, 3, 3, 3)),
        ("3", "Conv2d", (12, 8, 3, 3)),
        ("5", "Conv2d", (12, 1, 3, 3)),
        ("6", "Conv2d", (12, 4, 3, 3)),
        ("9", "Linear", (16, 12)),
        ("11", "Linear", (4, 16)),
    ]
    assert all(bool(layer.reason) == (layer.scheme == "dense") for layer in plan.layers)
    assert plan.policy == {"name": "tolerance", "tol": 0.1}


def test_planning_does_not_change_the_model():
    model = tiny_cnn()
    before = snapshot(model)
    make_plan(model, Tolerance(0.1), input_size=(3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_of_zeros_is_refused_by_name_unless_allowed():
    model = tiny_mlp()
    torch.nn.init.zeros_(model[4].weight)
    with pytest.raises(CheckpointError) as refused:
        make_plan(model, Tolerance(0.1), input_size=SIZE)
    assert refused.value.message == "all weights of `4` are zero"
    assert "--allow-zero-layers" in refused.value.hint
    plan = by_name(make_plan(model, Tolerance(0.1), input_size=SIZE, allow_zero_layers=True))
    assert (plan["4"].scheme, plan["4"].reason) == ("dense", "all its weights are zero")


def test_several_layers_of_zeros_are_counted():
    model = tiny_mlp()
    for layer in (model[1], model[4]):
        torch.nn.init.zeros_(layer.weight)
    with pytest.raises(CheckpointError, match=r"all weights of `1` are zero, and of 1 more layer$"):
        make_plan(model, Tolerance(0.1), input_size=SIZE, include_first=True)
    torch.nn.init.zeros_(model[6].weight)
    with pytest.raises(CheckpointError, match=r"all weights of `1` are zero, and of 2 more layers$"):
        make_plan(model, Tolerance(0.1), input_size=SIZE, include_first=True, include_classifier=True)


def test_a_dense_layer_of_zeros_is_nobodys_business():
    model = tiny_mlp()
    torch.nn.init.zeros_(model[6].weight)  # a head that was just replaced, say
    assert make_plan(model, Tolerance(0.1), input_size=SIZE).layers


def test_given_ranks_hold_whatever_the_policy_chooses_and_the_last_pattern_wins():
    model = tiny_mlp()
    options = {"input_size": SIZE, "include_first": True, "include_classifier": True}
    plan = make_plan(model, Tolerance(0.5), layer_ranks={"*": 2, "4": 7}, **options)
    assert {name: layer.ranks for name, layer in by_name(plan).items()} == {"1": (2,), "4": (7,), "6": (2,)}
    assert plan.policy == {"name": "tolerance", "tol": 0.5, "layer_ranks": {"*": 2, "4": 7}}
    alone = by_name(make_plan(model, Tolerance(0.5), **options))
    mixed = by_name(make_plan(model, Tolerance(0.5), layer_ranks={"4": 7}, **options))
    assert mixed["4"].ranks == (7,) != alone["4"].ranks
    assert mixed["1"] == alone["1"]


DENSE = {
    "the first layer": ("1", {}, "`1`: the first layer stays dense", "add --include-first"),
    "the classifier": ("6", {}, "`6`: the classifier stays dense", "add --include-classifier"),
    "excluded": ("4", {"exclude": ["[4]"]}, "`4`: excluded by the pattern `[4]`", "leave out the exclusion `[4]`"),
    "all zero": ("4", {"allow_zero_layers": True}, "`4`: all its weights are zero", "leave the layer out"),
}


@pytest.mark.parametrize(("name", "options", "reason", "hint"), DENSE.values(), ids=DENSE.keys())
def test_a_rank_for_a_layer_that_stays_dense_is_refused_with_the_reason_and_the_way_out(name, options, reason, hint):
    model = tiny_mlp()
    if "allow_zero_layers" in options:
        torch.nn.init.zeros_(model[4].weight)
    with pytest.raises(OptionError) as refused:
        make_plan(model, Tolerance(0.1), input_size=SIZE, layer_ranks={name: 2}, **options)
    assert refused.value.message == f"the pattern `{name}` matches no layer that could be factorised: {reason}" + (
        f" ({hint.removeprefix('add ')})" if "include" in hint else ""
    )
    assert refused.value.hint.startswith(hint)


def test_the_hint_of_a_budget_that_cannot_be_met_names_given_ranks_and_rounding_where_they_are():
    def hint(**options):
        with pytest.raises(OptionError, match="cannot be met") as refused:
            make_plan(tiny_mlp(), Budget(parameters=9), input_size=SIZE, **options)
        return refused.value.hint

    words = ("--layer-rank", "--round-ranks")
    assert [word in hint() for word in words] == [False, False]
    assert [word in hint(layer_ranks={"4": 8}) for word in words] == [True, False]
    assert [word in hint(decomposer=Decomposer(round_ranks=4)) for word in words] == [False, True]


@pytest.mark.parametrize("measure", ["parameters", "macs"])
def test_a_budget_counts_given_ranks_in(measure):
    model = tiny_cnn()
    size, options = (3, 8, 8), {"input_size": (3, 8, 8), "include_first": True, "include_classifier": True}
    total = count_parameters(model) if measure == "parameters" else count_macs(model, size)
    limit = round(0.75 * total)
    plan = make_plan(model, Budget(**{measure: limit}), layer_ranks={"3": 2}, **options)
    assert by_name(plan)["3"].ranks == (2,)
    low_rank = factorize(model, plan)
    left = count_parameters(low_rank) if measure == "parameters" else count_macs(low_rank, size)
    # Nothing is left over that would pay for another rank of a dense layer's shape.
    dearest = max(sum(layer.dense_shape) for layer in plan.layers) * (16 if measure == "macs" else 1) * 9
    assert limit - dearest < left <= limit


def test_a_given_rank_is_one_of_the_wanted_scheme_in_every_mode():
    model, options = tiny_cnn(), {"input_size": (3, 8, 8), "layer_ranks": {"[39]": 3}}
    plan = by_name(make_plan(model, Tolerance(0.1), decomposer=Decomposer(wanted="tucker2"), **options))
    assert (plan["3"].scheme, plan["3"].ranks, plan["3"].parameters) == ("tucker2", (3, 3), 3 * 8 + 81 + 3 * 12)
    assert (plan["9"].scheme, plan["9"].ranks) == ("matrix", (3,))
    auto = by_name(make_plan(model, Tolerance(0.1), **options))
    assert (auto["3"].scheme, auto["3"].ranks) == ("matrix", (3,))


@pytest.mark.parametrize("scheme", ["auto", "matrix", "spatial", "tucker2"])
@pytest.mark.parametrize("policy", [Tolerance(0.8), Smallest(), UniformRank(3)], ids=["tol", "smallest", "rank"])
def test_no_layer_gets_more_parameters_or_operations(scheme, policy):
    model, size = tiny_cnn(), (3, 8, 8)
    options = {"input_size": size, "include_first": True, "include_classifier": True}
    plan = make_plan(model, policy, decomposer=Decomposer(wanted=scheme), **options)
    assert len(plan.factorized()) >= 3
    macs, parameters = count_macs(model, size), count_parameters(model)
    for layer in plan.factorized().values():
        others = [other if other.name == layer.name else dense(other) for other in plan.layers]
        low_rank = factorize(model, replace(plan, layers=tuple(others)))
        saved = parameters - count_parameters(low_rank)
        assert saved == torch.Size(layer.dense_shape).numel() - layer.parameters > 0
        assert count_macs(low_rank, size) <= macs


def dense(layer):
    return replace(layer, scheme="dense", ranks=(), reason="in this test")


def test_operations_alone_can_keep_a_layer_dense():
    """With a stride of four the first of two convolutions runs at sixteen times as many positions as both do."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 4, stride=4), nn.Flatten(), nn.Linear(32, 4)).eval()
    decomposer = Decomposer(wanted="tucker2")
    plan = by_name(make_plan(model, UniformRank(7), input_size=(3, 8, 8), decomposer=decomposer))
    # 7·8 + 16·49 + 7·8 = 896 < 1024 parameters, but 64·56 + 4·(784 + 56) = 6944 > 4·1024 operations.
    assert plan["1"].scheme == "dense"
    assert "what was asked for does not remove parameters" in plan["1"].reason
    plan = by_name(make_plan(model, UniformRank(2), input_size=(3, 8, 8), decomposer=decomposer))
    assert plan["1"].ranks == (2, 2)


def test_a_layer_that_nothing_makes_smaller_says_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.Linear(9, 1), nn.Linear(1, 4)).eval()
    plan = by_name(make_plan(model, Tolerance(0.5), input_size=SIZE))
    assert plan["2"].reason == "no rank removes parameters without adding multiply-accumulates"


def test_auto_takes_whatever_costs_least_at_equal_error():
    model, options = tiny_cnn(), {"input_size": (3, 8, 8)}
    costs = {}
    for scheme in ("auto", "matrix", "spatial", "tucker2"):
        plan = make_plan(model, Tolerance(0.7), decomposer=Decomposer(wanted=scheme), **options)
        costs[scheme] = by_name(plan)["3"].parameters
    assert costs["auto"] == min(costs.values()) < max(costs.values())


@pytest.mark.parametrize("tol", [0.1, 0.7])
@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
def test_fine_tuning_starts_grouped_and_all_other_layers_in_the_form_that_is_wanted(scheme, tol):
    model, decomposer = tiny_cnn(), Decomposer(wanted=scheme)
    plan = make_plan(model, TrainingStart(tol), input_size=(3, 8, 8), decomposer=decomposer)
    schemes = {name: layer.scheme for name, layer in plan.factorized().items()}
    assert schemes == {"3": scheme, "6": "matrix", "9": "matrix"}  # a grouped and a linear layer have one form only
    for layer in plan.factorized().values():
        assert layer.parameters < layer.dense_parameters
    plan = make_plan(model, TrainingStart(tol), input_size=(3, 8, 8), layer_ranks={"3": 2}, decomposer=decomposer)
    assert (by_name(plan)["3"].scheme, set(by_name(plan)["3"].ranks)) == (scheme, {2})


def test_fine_tuning_starts_at_whatever_leaves_the_smallest_error_where_nothing_is_within_the_tolerance():
    model, errors = tiny_cnn(), {}
    for scheme in ("auto", "matrix", "spatial", "tucker2"):
        decomposer = Decomposer(wanted=scheme)
        plan = make_plan(model, TrainingStart(0.1), input_size=(3, 8, 8), decomposer=decomposer)
        errors[scheme] = by_name(plan)["3"].relative_error
    assert 0.1 < errors["auto"] == min(errors.values()) < max(errors.values())


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"4": 15}, "`4` cannot have rank 15"),
        ({"4": 10**30}, f"`4` cannot have rank {10**30}"),
        ({"4": 0}, "cannot have rank 0"),
        ({"4": -1}, "cannot have rank -1"),
        ({"5": 2}, "`5` matches no layer"),
        ({"1": 2}, "`1` matches no layer"),  # the first one, which stays dense
    ],
)
def test_a_rank_that_cannot_be_given_is_refused(ranks, message):
    with pytest.raises(OptionError, match=message) as caught:
        make_plan(tiny_mlp(), Tolerance(0.5), input_size=SIZE, layer_ranks=ranks)
    assert caught.value.hint


@pytest.mark.parametrize(
    "given", [{}, {"include_first": True}, {"include_classifier": True, "exclude": ["5"]}], ids=str
)
def test_a_budget_that_cannot_be_met_offers_only_what_has_not_been_given(given):
    with pytest.raises(OptionError) as refused:
        make_plan(tiny_cnn(), Budget(parameters=10), input_size=(3, 8, 8), **given)
    hint = refused.value.hint
    assert ("--include-first" in hint) == ("include_first" not in given)
    assert ("--include-classifier" in hint) == ("include_classifier" not in given)
    assert ("fewer exclusions" in hint) == ("exclude" in given)
