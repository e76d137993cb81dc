import copy

import pytest
import torch
from low_rank_layers import like
from networks import matrix_with_spectrum, relative_difference
from torch import nn

from lrcompress.dlrt import Circumstances, DlrtOptions, RankControl, cut, rotate
from lrcompress.errors import OptionError
from lrcompress.linalg import Factors
from lrcompress.measure import count_macs
from lrcompress.nn import (
    LowRankLinear,
    MatrixConv,
    SpatialConv,
    SplitLowRankLinear,
    TuckerConv,
    count_shipped_parameters,
    factored,
    factored_layers,
)
from lrcompress.plan import Budget, Energy, FullRank, Smallest, Tolerance, UniformRank
from lrcompress.schemes import Positions


def decaying(layer, *, base, seed=0):
    """Gives a layer a core whose singular values fall by a factor, so that ranks have something to choose by."""
    torch.manual_seed(seed)
    g, r, s, p = layer.S.shape
    core = torch.randn(g, r, s, p) * base ** (torch.arange(r)[:, None, None] + torch.arange(s)[:, None])
    layer.set_factors_(Factors(layer.U.detach(), core, layer.V.detach()))
    return layer


def with_spectrum(sigma, m, n):
    """A linear layer with the given singular values."""
    layer, size = factored(LowRankLinear(n, m, len(sigma), bias=True)), len(sigma)
    core = matrix_with_spectrum(sigma, size, size).float()[None, :, :, None]
    layer.set_factors_(Factors(layer.U.detach(), core, layer.V.detach()))
    return layer


def network():
    """All forms at ranks that may fall or grow, and what stays dense; for images of 6×8×8."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "first": nn.Conv2d(6, 12, 3, padding=1),
            "tucker": factored(like(nn.Conv2d(12, 16, 3, padding=1), TuckerConv, (16, 12))),
            "spatial": factored(like(nn.Conv2d(16, 16, 3, padding=1), SpatialConv, (40,))),
            "groups": factored(like(nn.Conv2d(16, 24, 3, padding=1, groups=2), MatrixConv, (12,))),
            "linear": factored(LowRankLinear(24, 32, 20, bias=True)),
            "qkv": factored(SplitLowRankLinear(32, 96, (24, 24, 24), bias=True)),
            "head": nn.Linear(96, 4),
        }
    )
    for index, layer in enumerate(factored_layers(model).values()):
        decaying(layer, base=0.6 + 0.04 * index, seed=index)
    return model


SEQUENCE = ("tucker", "spatial", "groups", "linear", "qkv")
# The parameters of the dense layers, and of everything else.
DENSE = {"tucker": 12 * 16 * 9, "spatial": 16 * 16 * 9, "groups": 24 * 8 * 9, "linear": 24 * 32, "qkv": 32 * 96}
OTHERS = (6 * 12 * 9 + 12) + 16 + 16 + 24 + 32 + 96 + (96 * 4 + 4)
WHOLE = sum(DENSE.values()) + OTHERS
POSITIONS = {name: Positions(64, 64, 64) for name in ("tucker", "spatial", "groups")}
POSITIONS |= {name: Positions(1, 1, 1) for name in ("linear", "qkv")}


def control_of(model, policy, *, circumstances=None, **options):
    return RankControl(model, DlrtOptions(policy, **options), circumstances or Circumstances())


def rotated_of(model):
    return {name: rotate(layer.factors())[0] for name, layer in factored_layers(model).items()}


def ranks_of(model, policy, **options):
    return control_of(model, policy, **options).choose(rotated_of(model))


def cut_to(model, ranks):
    """A copy of the network whose layers are cut to these ranks."""
    model = copy.deepcopy(model)
    for name, layer in factored_layers(model).items():
        layer.set_factors_(cut(*rotate(layer.factors()), ranks[name])[0])
    return model


def weights_of(model):
    return {name: layer.weight.detach().double() for name, layer in factored_layers(model).items()}


def relative_errors(model, ranks):
    before, after = weights_of(model), weights_of(cut_to(model, ranks))
    return {name: float((before[name] - after[name]).norm() / before[name].norm()) for name in before}


def largest_useful(m, n):
    return (m * n - 1) // (m + n)


def test_the_network_is_counted_as_by_hand():
    model = network()
    control = control_of(model, Tolerance(0.1))
    assert control.whole.parameters == WHOLE
    assert {name: costs.dense_parameters for name, costs in control.layers.items() if "qkv" not in name} == {
        name: count for name, count in DENSE.items() if name != "qkv"
    }
    assert sum(costs.dense_parameters for name, costs in control.layers.items() if "qkv" in name) == DENSE["qkv"]


@pytest.mark.parametrize("tol", [0.01, 0.1, 0.4, 0.8])
def test_a_tolerance_gives_the_smallest_rank_of_a_matrix_that_keeps_it(tol):
    sigma = [5.0 * 0.7**index for index in range(12)]
    model = nn.ModuleDict({"one": with_spectrum(sigma, 40, 30)})
    values = torch.tensor(sigma, dtype=torch.float64)
    needed = next(rank for rank in range(1, 13) if values[rank:].norm() <= tol * values.norm())
    assert ranks_of(model, Tolerance(tol)) == {"one": (needed,)}
    # The same rule in terms of energy.
    assert ranks_of(model, Energy(1 - tol**2)) == {"one": (needed,)}


@pytest.mark.parametrize("tol", [0.05, 0.3, 0.7])
def test_a_tolerance_gives_every_form_the_fewest_parameters_that_keep_it(tol):
    model = network()
    ranks = ranks_of(model, Tolerance(tol))
    errors = relative_errors(model, ranks)
    for name, layer in factored_layers(model).items():
        rotated, change = rotate(layer.factors())
        assert all(rank <= most for rank, most in zip(ranks[name], layer.ranks, strict=True))
        counts = {}
        for wanted in all_ranks(layer):
            other = copy.deepcopy(layer)
            other.set_factors_(cut(rotated, change, wanted)[0])
            error = relative_difference(other.weight, layer.weight)
            counts[wanted] = (other.shipped_parameters(), error)
        dense = DENSE[name] if name in DENSE else DENSE["qkv"] // 3
        within = {key: count for key, (count, error) in counts.items() if error <= tol * (1 + 1e-5) and count < dense}
        if within:
            assert counts[ranks[name]][0] == min(within.values())
            assert errors[name] <= tol * (1 + 1e-5)
        else:  # as much as removes parameters
            useful = [error for count, error in counts.values() if count < dense]
            assert errors[name] == pytest.approx(min(useful), rel=1e-4)


def all_ranks(layer):
    outputs, inputs, positions = layer.S.shape[1:]
    if positions == 1:
        return [(rank,) for rank in range(1, outputs + 1)]
    return [(a, b) for a in range(1, outputs + 1) for b in range(1, inputs + 1)]


@pytest.mark.parametrize("fraction", [0.25, 0.4, 0.6, 0.8])
def test_a_budget_is_kept_by_the_whole_model_and_spent(fraction):
    model = network()
    small = cut_to(model, ranks_of(model, Budget(fraction=fraction)))
    count = count_shipped_parameters(small)
    assert count <= fraction * WHOLE
    # The largest steps of a rank that are left unused: of a layer of a hundred columns or so.
    assert count >= fraction * WHOLE - 72


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.7])
def test_a_budget_of_a_network_of_usual_size_is_spent_within_one_percent(fraction):
    model = nn.ModuleDict({str(n): with_spectrum([0.97**i for i in range(60)], 200, 100 + n) for n in range(8)})
    whole = sum(200 * (100 + n) + 200 for n in range(8))
    count = count_shipped_parameters(cut_to(model, ranks_of(model, Budget(fraction=fraction))))
    assert 0.99 * fraction * whole <= count <= fraction * whole


def test_a_budget_goes_where_it_removes_most_error():
    flat, steep = with_spectrum([1.0] * 10, 30, 30), with_spectrum([1.0] + [0.01] * 9, 30, 30)
    model = nn.ModuleDict({"flat": flat, "steep": steep})
    ranks = ranks_of(model, Budget(parameters=11 * 60 + 60))
    assert ranks == {"flat": (10,), "steep": (1,)}


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(OptionError, match="the smallest possible model has"):
        ranks_of(network(), Budget(parameters=OTHERS + 10))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_budget_of_operations_is_kept_where_positions_are_known(share):
    model = network()
    dense = {"tucker": 64, "spatial": 64, "groups": 64, "linear": 1, "qkv": 1}
    others = 64 * 6 * 12 * 9 + 96 * 4
    macs = others + sum(DENSE[name] * positions for name, positions in dense.items())
    limit = others + int(share * (macs - others))
    ranks = ranks_of(model, Budget(macs=limit), circumstances=Circumstances(POSITIONS, macs))
    shipped, size = fold(cut_to(model, ranks)), {"tucker": 12, "spatial": 16, "groups": 16}
    used = others
    for name in SEQUENCE:
        channels = size.get(name)
        used += count_macs(shipped[name], (channels, 8, 8)) if channels else linear_macs(shipped[name])
    assert used <= limit
    assert used >= 0.97 * limit


def fold(model):
    return nn.ModuleDict({name: getattr(layer, "fold", lambda layer=layer: layer)() for name, layer in model.items()})


def linear_macs(layer):
    return sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim > 1)


def test_ranks_that_add_operations_do_not_come_into_question_where_positions_are_known():
    # The transposed form reduces on few positions and expands on many: it must not be wider than the dense layer.
    dense = nn.ConvTranspose2d(16, 16, 4, stride=4)
    model = nn.ModuleDict({"up": decaying(factored(like(dense, MatrixConv, (16,))), base=0.999)})
    inputs, outputs = 8 * 8, 32 * 32
    without = ranks_of(model, Tolerance(1e-6))["up"][0]
    circumstances = Circumstances({"up": Positions(inputs, outputs, 0)})
    known = ranks_of(model, Tolerance(1e-6), circumstances=circumstances)["up"][0]
    assert without == largest_useful(16, 16 * 16)
    assert known == (inputs * 16 * 256) // (inputs * 256 + outputs * 16)
    assert known < without


def test_a_part_of_a_split_layer_is_applied_as_often_as_the_whole():
    model = nn.ModuleDict({"qkv": factored(SplitLowRankLinear(32, 96, (8, 8, 8), bias=True))})
    circumstances = Circumstances({"qkv": Positions(50, 50, 50)}, macs=50 * 32 * 96)
    control = control_of(model, Tolerance(0.1), circumstances=circumstances)
    assert sum(costs.dense_macs for costs in control.layers.values()) == 50 * 32 * 96
    ranks = ranks_of(model, Budget(macs=50 * 20 * 64), circumstances=circumstances)
    assert sum(rank for (rank,) in ranks.values()) == 20


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3),  # what the tolerance needs
        ({"max_rank": 2}, 2),
        ({"min_rank": 5}, 5),
        ({"min_rank": 50}, 8),  # there are no more
        ({"round_ranks": 4}, 4),
        ({"round_ranks": 8}, 8),
        ({"round_ranks": 16}, 3),  # no multiple is possible
        ({"round_ranks": 4, "max_rank": 6}, 4),
        ({"round_ranks": 4, "max_rank": 3}, 3),
        ({"round_ranks": 4, "min_rank": 5}, 8),
        ({"round_ranks": 5, "min_rank": 6}, 6),  # no multiple lies within the bounds
    ],
)
def test_ranks_are_kept_within_their_bounds_and_rounded_where_that_is_possible(options, expected):
    model = nn.ModuleDict({"one": with_spectrum([4.0, 3.0, 2.0, 0.05, 0.04, 0.03, 0.02, 0.01], 40, 30)})
    assert ranks_of(model, Tolerance(0.1), **options) == {"one": (expected,)}


def test_a_rounded_rank_never_makes_a_layer_larger_than_the_dense_one():
    # Of a 10×10 layer only ranks up to 4 remove parameters.
    model = nn.ModuleDict({"one": with_spectrum([1.0] * 8, 10, 10)})
    assert ranks_of(model, Tolerance(0.1), round_ranks=8) == {"one": (4,)}


@pytest.mark.parametrize(("multiple", "smallest"), [(2, 4), (4, 2), (3, 3)])
def test_both_ranks_of_a_kernel_keep_the_bounds(multiple, smallest):
    model = nn.ModuleDict({"tucker": network()["tucker"]})
    for tol in (0.01, 0.3, 0.9):
        (ranks,) = ranks_of(model, Tolerance(tol), round_ranks=multiple, min_rank=smallest, max_rank=9).values()
        assert all(rank % multiple == 0 and smallest <= rank <= 9 for rank in ranks)


def test_given_ranks_are_kept_whatever_the_policy():
    model = network()
    given = {"tucker": (3, 5), "spatial": (7,), "groups": (2,), "linear": (4,), "qkv": (2, 3, 5)}
    expected = {name: ranks for name, ranks in given.items() if name != "qkv"}
    expected |= {"qkv.parts.0": (2,), "qkv.parts.1": (3,), "qkv.parts.2": (5,)}
    for policy in (Tolerance(0.01), Tolerance(0.9), Budget(fraction=0.9), Smallest(), UniformRank(8)):
        assert ranks_of(model, policy, circumstances=Circumstances(fixed_ranks=given), max_rank=6) == expected


def test_a_budget_spends_on_the_others_what_given_ranks_leave():
    # Left dense, the small layer would have no error for 80 parameters more; but its rank is given.
    model = nn.ModuleDict({"small": with_spectrum([1.0] * 8, 10, 10), "large": with_spectrum([1.0] * 20, 30, 30)})
    given = Circumstances(fixed_ranks={"small": (1,)})
    ranks = ranks_of(model, Budget(parameters=40 + 20 + 5 * 60), circumstances=given)
    assert ranks == {"small": (1,), "large": (5,)}


def test_a_budget_spends_on_the_others_what_a_largest_rank_leaves():
    # At rank 2 of at most 2 the small layer costs 40 of its 100 parameters; the other 60 are one rank of the large one.
    model = nn.ModuleDict({"small": with_spectrum([1.0] * 4, 10, 10), "large": with_spectrum([1.0, 0.5], 30, 30)})
    ranks = ranks_of(model, Budget(parameters=2 * 20 + 2 * 60 + 40), max_rank=2)
    assert ranks == {"small": (2,), "large": (2,)}


def test_of_a_smallest_rank_that_removes_nothing_a_budget_counts_the_true_cost():
    # At rank 6 a 10×10 layer has 120 parameters instead of 100.
    model = nn.ModuleDict({"small": with_spectrum([1.0] * 8, 10, 10), "large": with_spectrum([1.0] * 20, 30, 30)})
    limit = 10 + 30 + 120 + 7 * 60 + 59
    ranks = ranks_of(model, Budget(parameters=limit), min_rank=6)
    assert ranks == {"small": (6,), "large": (7,)}
    assert count_shipped_parameters(cut_to(model, ranks)) <= limit


def test_uniform_and_smallest_ranks_are_given_to_every_layer():
    model = network()
    for name, ranks in ranks_of(model, UniformRank(3)).items():
        assert set(ranks) == {3}, name
    assert all(set(ranks) == {1} for ranks in ranks_of(model, Smallest()).values())
    full = ranks_of(model, FullRank())
    assert full["linear"] == (largest_useful(24, 32),)


def test_a_zero_core_keeps_one_rank():
    model = nn.ModuleDict({"one": with_spectrum([0.0] * 5, 20, 20), "other": with_spectrum([1.0] * 5, 20, 20)})
    for policy in (Tolerance(0.1), Budget(fraction=0.9), Smallest()):
        assert ranks_of(model, policy)["one"] == (1,)


def test_without_layers_there_is_nothing_to_choose():
    assert ranks_of(nn.Linear(3, 3), Budget(fraction=0.1)) == {}


def test_what_no_rank_can_meet_gives_the_largest_that_removes_parameters_in_every_form():
    model = network()
    for layer in factored_layers(model).values():
        core = torch.rand(layer.S.shape, generator=torch.Generator().manual_seed(0))
        layer.set_factors_(Factors(layer.U.detach(), core, layer.V.detach()))
    ranks = ranks_of(model, Tolerance(1e-6))
    for name, layer in factored_layers(cut_to(model, ranks)).items():
        assert layer.shipped_parameters() < (DENSE[name] if name in DENSE else DENSE["qkv"] // 3)
    assert ranks["linear"] == (largest_useful(24, 32),)
    assert ranks["groups"] == (largest_useful(12, 72),)


@pytest.mark.parametrize("options", [{}, {"min_rank": 3}, {"round_ranks": 4}])
def test_the_smallest_fraction_is_that_of_the_smallest_ranks(options):
    model = network()
    control = control_of(model, Smallest(), **options)
    small = cut_to(model, control.choose(rotated_of(model)))
    assert control.smallest_fraction() == pytest.approx(count_shipped_parameters(small) / WHOLE)


def test_no_budget_below_the_smallest_fraction_is_met_and_one_just_above_is():
    model, given = network(), Circumstances(fixed_ranks={"linear": (9,), "qkv": (4, 4, 4)})
    smallest = control_of(model, Smallest(), circumstances=given).smallest_fraction()
    ranks = ranks_of(model, Budget(fraction=smallest + 1e-6), circumstances=given)
    assert count_shipped_parameters(cut_to(model, ranks)) == round(smallest * WHOLE)
    with pytest.raises(OptionError):
        ranks_of(model, Budget(fraction=smallest - 1e-3), circumstances=given)


def test_a_tolerance_that_is_applied_again_and_again_cuts_only_once():
    model = network()
    control = control_of(model, Tolerance(0.3))
    first = control.choose(rotated_of(model))
    model = cut_to(model, first)
    for _ in range(5):
        assert control.choose(rotated_of(model)) == first
        model = cut_to(model, control.choose(rotated_of(model)))


def test_during_training_a_direction_that_fades_is_cut_and_one_that_has_grown_is_kept():
    sigma = [4.0, 3.0, 2.0, 1.0, 0.1, 0.1]
    control = control_of(nn.ModuleDict({"one": with_spectrum(sigma, 40, 30)}), Tolerance(0.1))

    def rank_with(values, before=4):
        rotated = rotated_of(nn.ModuleDict({"one": with_spectrum(values, 40, 30)}))
        return control.choose(rotated, {"one": (before,)})["one"][0]

    assert rank_with(sigma) == 4
    assert rank_with([4.0, 3.0, 2.0, 0.6, 0.1, 0.1]) == 4
    assert rank_with([4.0, 3.0, 2.0, 0.4, 0.1, 0.1]) == 3
    assert rank_with([4.0, 3.0, 2.0, 1.0, 0.7, 0.1]) == 5
    assert rank_with([4.0, 3.0, 2.0, 1.0, 0.51, 0.1]) == 4  # without it 0.1 is kept still
    assert rank_with([8.0, 6.0, 4.0, 2.0, 0.2, 0.2]) == 4  # the scale says nothing


def test_what_the_factorisation_has_left_out_counts_towards_the_tolerance():
    # ‖W‖² was 100, of which 1 is gone already: a tolerance of 0.1 is used up.
    sigma = [9.0, 3.0, 2.9, 0.6324555]
    model = nn.ModuleDict({"one": with_spectrum(sigma, 40, 30)})
    assert ranks_of(model, Tolerance(0.1)) == {"one": (3,)}
    assert ranks_of(model, Tolerance(0.1), circumstances=Circumstances(left_out={"one": 0.01})) == {"one": (4,)}
