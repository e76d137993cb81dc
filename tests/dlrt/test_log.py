import dataclasses
import json
import math

import pytest
import torch
from networks import matrix_with_spectrum
from torch import nn
from trainings import low_rank_cnn, low_rank_mlp

from lrcompress.dlrt import CoreRecord, Dlrt, DlrtOptions, EpochRecord
from lrcompress.dlrt.log import describe_cores
from lrcompress.nn import factored_layers
from lrcompress.plan import Tolerance


def record(**changes):
    core = CoreRecord(kappa=2.5, sigma_max=5.0, norm=6.0, penalty=0.5, beta=0.1)
    values = {
        "epoch": 3,
        "loss": 0.25,
        "held_out_accuracy": 0.75,
        "held_out_robust_accuracy": None,
        "ranks": {"a": (3,), "b": (2, 4)},
        "parameters": 100,
        "frozen": True,
        "cores": {"a": core, "b": dataclasses.replace(core, kappa=None)},
    }
    return EpochRecord(**values | changes)


@pytest.mark.parametrize(
    "changes", [{}, {"loss": None, "epoch": 0}, {"held_out_robust_accuracy": 0.5}, {"cores": {}, "ranks": {}}], ids=str
)
def test_a_record_survives_json(changes):
    one = record(**changes)
    assert EpochRecord.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False))) == one


def test_a_state_is_judged_by_its_robust_accuracy_where_there_is_one():
    assert record().score() == 0.75
    assert record(held_out_robust_accuracy=0.5).score() == 0.5
    assert record(held_out_robust_accuracy=0.0).score() == 0.0


def penalty_by_hand(sigma, *, scale_free):
    squares = sigma.double().square()
    deviation = float((squares - squares.mean()).norm())
    return deviation / float(squares.mean()) if scale_free else deviation


@pytest.mark.parametrize("penalty", ["paper", "scale-free"])
def test_cores_are_described_by_their_singular_values(penalty):
    model = low_rank_mlp()
    dlrt = Dlrt(model, DlrtOptions(Tolerance(1e-6), penalty=penalty, beta=0.25))
    sigma = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5, 0.25])
    layer = factored_layers(model)["1"]
    with torch.no_grad():
        layer.S.copy_(matrix_with_spectrum(sigma.tolist(), 6, 6)[None, :, :, None])
    core = describe_cores(dlrt)["1"]
    assert core.kappa == pytest.approx(16, rel=1e-5)
    assert core.sigma_max == pytest.approx(4, rel=1e-5)
    assert core.norm == pytest.approx(float(sigma.norm()), rel=1e-5)
    assert core.penalty == pytest.approx(penalty_by_hand(sigma, scale_free=penalty == "scale-free"), rel=1e-4)
    assert core.beta == 0.25


def test_an_infinite_condition_number_is_none_for_json_has_no_infinity():
    model = low_rank_mlp()
    dlrt = Dlrt(model, DlrtOptions(Tolerance(0.1)))
    with torch.no_grad():
        factored_layers(model)["4"].S[0, -1] = 0
    core = describe_cores(dlrt)["4"]
    assert core.kappa is None
    assert math.isfinite(core.penalty)


def test_convolutional_cores_are_described_by_their_output_unfolding():
    model = low_rank_cnn()
    dlrt = Dlrt(model, DlrtOptions(Tolerance(0.1)))
    described = describe_cores(dlrt)
    assert described.keys() == dlrt.layers.keys()
    for name, layer in dlrt.layers.items():
        groups = [torch.linalg.svdvals(core.flatten(1).double()) for core in layer.S.detach()]
        assert described[name].sigma_max == pytest.approx(max(float(sigma.max()) for sigma in groups), rel=1e-5)
        kappas = [float(sigma.max() / sigma.min()) for sigma in groups]
        assert described[name].kappa == pytest.approx(max(kappas), rel=1e-3)


def test_a_network_without_cores_has_none():
    assert describe_cores(Dlrt(nn.Linear(3, 2), DlrtOptions(Tolerance(0.1)))) == {}
