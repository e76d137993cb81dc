import json

import pytest
import torch
from networks import random_matrix

from lrcompress.errors import OptionError
from lrcompress.plan import FullRank, Spectrum, Tolerance, TrainingStart


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
    ranks = Tolerance(tol).choose_ranks({name: Spectrum(sigma, 12, 8) for name, sigma in sigmas.items()})
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
    assert TrainingStart(0.1, max_rank=max_rank).choose_ranks(spectra) == expected


def test_full_rank_takes_all_singular_values_even_where_that_adds_parameters():
    policy = FullRank()
    assert policy.choose_ranks({"a": spectrum([1.0, 0.0, 0.0]), "b": spectrum([2.0], 1, 9)}) == {"a": 3, "b": 1}
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
