import math

import pytest
import torch
from networks import matrix_with_spectrum, tiny_cnn, tiny_mlp

from lrcompress.factorize import describe_layers, factorize, fold_
from lrcompress.plan import FullRank, Tolerance, make_plan


def test_records_measure_the_shipped_factors_against_the_dense_weight():
    model = tiny_mlp()
    sigma = [5.0, 3.0, 2.0, 0.5, 0.1]
    with torch.no_grad():
        model[4].weight.copy_(matrix_with_spectrum(sigma, 24, 40))
    plan = make_plan(model, Tolerance(0.1), input_size=(3, 4, 4))
    shipped = fold_(factorize(model, plan))
    record = next(r for r in describe_layers(model, shipped, plan, start_kappas={"4": 7.0}) if r.name == "4")
    norm = math.sqrt(sum(value**2 for value in sigma))
    assert (record.scheme, record.kind, record.dense_shape, record.rank) == ("matrix", "Linear", (24, 40), 3)
    assert record.sigma_max == pytest.approx(5, rel=1e-5)
    assert record.sigma_min == pytest.approx(2, rel=1e-5)
    assert record.kappa == pytest.approx(2.5, rel=1e-5)
    assert record.stable_rank == pytest.approx((25 + 9 + 4) / 25, rel=1e-5)
    assert record.norm == pytest.approx(math.sqrt(25 + 9 + 4), rel=1e-5)
    assert record.dense_norm == pytest.approx(norm, rel=1e-5)
    assert record.relative_error == pytest.approx(math.sqrt(0.25 + 0.01) / norm, rel=1e-4)
    assert record.start_kappa == 7.0


def test_a_change_after_factorising_is_seen():
    model = tiny_mlp()
    plan = make_plan(model, FullRank(), input_size=(3, 4, 4))
    shipped = fold_(factorize(model, plan))
    with torch.no_grad():
        shipped[4].expand.weight.mul_(3)
    record = next(r for r in describe_layers(model, shipped, plan) if r.name == "4")
    assert record.relative_error == pytest.approx(2, rel=1e-5)
    assert record.norm == pytest.approx(3 * record.dense_norm, rel=1e-5)


@pytest.mark.parametrize("tol", [0.3, 0.6])
def test_singular_values_of_convolutions_are_those_of_the_applied_kernel(tol):
    model = tiny_cnn()
    plan = make_plan(model, Tolerance(tol), input_size=(3, 8, 8))
    shipped = fold_(factorize(model, plan))
    records = {record.name: record for record in describe_layers(model, shipped, plan)}
    assert list(plan.factorized())
    for name, layer in plan.factorized().items():
        module = shipped.get_submodule(name)
        # The kernel that the two layers apply is their response to unit impulses.
        applied = torch.einsum("or,rn->on", module.expand.weight.flatten(1), module.reduce.weight.flatten(1)).detach()
        sigma = torch.linalg.svdvals(applied.double())[: layer.rank]
        assert records[name].sigma_max == pytest.approx(float(sigma[0]), rel=1e-5)
        assert records[name].sigma_min == pytest.approx(float(sigma[-1]), rel=1e-4)
        assert records[name].relative_error <= tol


def test_dense_layers_keep_their_reason_and_have_no_figures():
    model = tiny_cnn()
    plan = make_plan(model, Tolerance(0.5), input_size=(3, 8, 8))
    records = describe_layers(model, fold_(factorize(model, plan)), plan)
    assert [record.name for record in records] == [layer.name for layer in plan.layers]
    depthwise = next(record for record in records if record.name == "5")
    assert depthwise.reason == "depthwise convolution"
    assert depthwise.rank is depthwise.kappa is depthwise.relative_error is None


def test_singular_values_are_right_whatever_the_factors_are():
    model = tiny_cnn()
    plan = make_plan(model, Tolerance(0.5), input_size=(3, 8, 8))
    shipped = fold_(factorize(model, plan))
    with torch.no_grad():  # neither of them orthonormal any more
        for parameter in shipped.parameters():
            parameter.copy_(torch.randn_like(parameter))
    for record in describe_layers(model, shipped, plan):
        if record.scheme == "dense":
            continue
        module = shipped.get_submodule(record.name)
        applied = module.expand.weight.detach().double().flatten(1) @ module.reduce.weight.detach().double().flatten(1)
        sigma = torch.linalg.svdvals(applied)[: record.rank]
        assert record.sigma_max == pytest.approx(float(sigma[0]))
        assert record.sigma_min == pytest.approx(float(sigma[-1]))
