import json

import pytest
import torch
from networks import random_matrix

from lrcompress.errors import OptionError
from lrcompress.plan import Budget, Energy, FullRank, Spectrum, Tolerance, TrainingStart, UniformRank, WholeModel

WHOLE = WholeModel(10**6, 10**6)  # of no matter to most policies


def spectrum(sigma, m=None, n=None):
    return Spectrum(torch.tensor(sigma, dtype=torch.float64), m or len(sigma), n or len(sigma))


@pytest.mark.parametrize("shape", [(1, 1), (1, 100), (2, 2), (3, 3), (2, 3), (64, 576), (512, 512), (10, 7), (6, 3)])
def test_the_largest_useful_rank_is_the_last_that_removes_parameters(shape):
    m, n = shape
    largest = Spectrum(torch.ones(min(shape)), m, n).largest_useful_rank
    assert [rank for rank in range(1, min(shape) + 2) if rank * (m + n) < m * n] == list(range(1, largest + 1))


@pytest.mark.parametrize("tol", [0.001, 0.1, 0.5, 0.99])
def test_tolerance_chooses_the_smallest_rank_that_keeps_it_in_every_layer(tol):
    matrices = {f"layer {index}": random_matrix(12, 8 + index, seed=index) for index in range(4)}
    sigmas = {name: torch.linalg.svdvals(matrix) for name, matrix in matrices.items()}
    ranks = Tolerance(tol).choose_ranks({name: Spectrum(sigma, 12, 8) for name, sigma in sigmas.items()}, WHOLE)
    assert set(ranks) == set(sigmas)
    for name, sigma in sigmas.items():
        rank = ranks[name]
        assert rank >= 1
        assert sigma[rank:].norm() <= tol * sigma.norm()
        assert rank == 1 or sigma[rank - 1 :].norm() > tol * sigma.norm()


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
        (None, {"flat": 3, "steep": 1, "tiny": 1}),
        (2, {"flat": 2, "steep": 1, "tiny": 1}),
        (50, {"flat": 3, "steep": 1, "tiny": 1}),
    ],
)
def test_training_starts_at_the_tolerance_but_never_above_what_removes_parameters(max_rank, expected):
    spectra = {"flat": spectrum([1.0] * 8), "steep": spectrum([1.0] + [1e-3] * 7), "tiny": spectrum([1.0])}
    assert TrainingStart(0.1, max_rank=max_rank).choose_ranks(spectra, WHOLE) == expected


def test_full_rank_takes_all_singular_values_even_where_that_adds_parameters():
    policy = FullRank()
    assert policy.choose_ranks({"a": spectrum([1.0, 0.0, 0.0]), "b": spectrum([2.0], 1, 9)}, WHOLE) == {"a": 3, "b": 1}
    assert policy.may_enlarge()
    assert not Tolerance(0.1).may_enlarge()
    assert not TrainingStart(0.1).may_enlarge()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Tolerance(0.1), {"name": "tolerance", "tol": 0.1}),
        (TrainingStart(0.1, max_rank=9), {"name": "training start", "tol": 0.1, "max_rank": 9}),
        (FullRank(), {"name": "full rank"}),
    ],
)
def test_a_policy_describes_itself_in_json(policy, expected):
    assert json.loads(json.dumps(policy.describe())) == expected


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_energy_keeps_its_share_of_the_squared_norm_with_the_fewest_ranks(energy):
    sigma = torch.linalg.svdvals(random_matrix(12, 9).double())
    rank = Energy(energy).choose_ranks({"a": Spectrum(sigma, 12, 9)}, WHOLE)["a"]
    kept = sigma.square().cumsum(0) / sigma.square().sum()
    assert kept[rank - 1] >= energy
    assert rank == 1 or kept[rank - 2] < energy
    assert sigma[rank:].norm() <= Energy(energy).guaranteed_tol() * sigma.norm()


def test_one_rank_for_all_is_cut_to_what_a_layer_has():
    spectra = {"a": spectrum([3.0, 2.0, 1.0]), "b": spectrum([2.0], 1, 9)}
    assert UniformRank(2).choose_ranks(spectra, WHOLE) == {"a": 2, "b": 1}


def some_spectra(*, positions=(1, 1, 1)):
    sizes = {"a": (20, 30), "b": (16, 16), "c": (12, 40)}
    return {
        name: Spectrum(torch.linalg.svdvals(random_matrix(m, n, seed=m).double()) ** 3, m, n, at)
        for (name, (m, n)), at in zip(sizes.items(), positions, strict=True)
    }


def cost_of(spectra, ranks, weight):
    """Of the whole model with 500 parameters beside the layers, which are applied once."""
    costs = {name: min(ranks[name] * (s.m + s.n), s.m * s.n) * weight(s) for name, s in spectra.items()}
    return 500 + sum(costs.values())


@pytest.mark.parametrize("fraction", [0.4, 0.5, 0.75, 0.9])
def test_a_budget_of_parameters_is_kept_and_used(fraction):
    spectra = some_spectra()
    whole = 500 + sum(s.m * s.n for s in spectra.values())
    ranks = Budget(fraction=fraction).choose_ranks(spectra, WholeModel(whole, 0))
    used = cost_of(spectra, ranks, lambda s: 1)
    assert used <= fraction * whole
    assert used + 52 > fraction * whole  # one rank of the layer where it costs most would not fit any more
    assert ranks == Budget(parameters=int(fraction * whole)).choose_ranks(spectra, WholeModel(whole, 0))


def test_a_budget_of_macs_counts_how_often_a_layer_is_applied():
    spectra = some_spectra(positions=(100, 1, 1))
    whole = 500 + sum(s.m * s.n * s.positions for s in spectra.values())
    ranks = Budget(macs=whole // 2).choose_ranks(spectra, WholeModel(0, whole))
    assert whole // 2 - 5000 < cost_of(spectra, ranks, lambda s: s.positions) <= whole // 2
    few = Budget(macs=500 + 100 * 50 + 32 + 52).choose_ranks(spectra, WholeModel(0, whole))
    assert few == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("policy", [Budget(fraction=0.1), Budget(parameters=600), Budget(macs=600)], ids=str)
def test_a_budget_below_rank_one_everywhere_is_refused_with_the_smallest_that_is_possible(policy):
    spectra = some_spectra()
    smallest = 500 + 50 + 32 + 52
    with pytest.raises(OptionError, match=f"leaves {smallest} of 1,836") as refused:
        policy.choose_ranks(spectra, WholeModel(1836, 1836))
    assert "--include-classifier" in refused.value.hint
    assert Budget(parameters=smallest).choose_ranks(spectra, WholeModel(1836, 0)) == {"a": 1, "b": 1, "c": 1}


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
