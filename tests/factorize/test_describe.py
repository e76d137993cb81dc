import copy
import math

import pytest
import torch
from artifacts import family
from networks import matrix_with_spectrum, tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.factorize import condition_numbers, describe_layers, factorize, factorize_for_training, fold_
from lrcompress.linalg import Factors
from lrcompress.plan import Decomposer, FullRank, Tolerance, TrainingStart, UniformRank, make_plan


def test_records_measure_the_shipped_factors_against_the_dense_weight():
    model = tiny_mlp()
    sigma = [5.0, 3.0, 2.0, 0.5, 0.1]
    with torch.no_grad():
        model[4].weight.copy_(matrix_with_spectrum(sigma, 24, 40))
    plan = make_plan(model, Tolerance(0.1), input_size=(3, 4, 4))
    shipped = factorize(model, plan)
    record = next(r for r in describe_layers(model, shipped, plan, start_kappas={"4": 7.0}) if r.name == "4")
    norm = math.sqrt(sum(value**2 for value in sigma))
    assert (record.scheme, record.kind, record.dense_shape, record.ranks) == ("matrix", "Linear", (24, 40), (3,))
    assert record.parameters == 3 * (24 + 40)
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
    shipped = factorize(model, plan)
    with torch.no_grad():
        shipped[4].expand.weight.mul_(3)
    record = next(r for r in describe_layers(model, shipped, plan) if r.name == "4")
    assert record.relative_error == pytest.approx(2, rel=1e-5)
    assert record.norm == pytest.approx(3 * record.dense_norm, rel=1e-5)


def unfolding(scheme, kernel):
    """The matrix that a scheme truncates, of the kernel that a layer applies."""
    if scheme == "spatial":  # by output and column, and by channel and row
        return kernel.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)
    return kernel.flatten(1)


def response(layer, channels, kernel_size):
    """The kernel that a convolution without a stride applies: what it makes of an impulse in each channel."""
    rows, columns = kernel_size
    impulses = torch.zeros(channels, channels, 2 * rows + 1, 2 * columns + 1)
    impulses[range(channels), range(channels), rows, columns] = 1
    with torch.no_grad():
        y = (layer(impulses) - layer.bias[:, None, None]).double()
    down, right = layer.padding[0] + 1, layer.padding[1] + 1
    return y[:, :, down : down + rows, right : right + columns].flip(2, 3).transpose(0, 1)


@pytest.mark.parametrize("tol", [0.5, 0.8])
@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
def test_singular_values_of_convolutions_are_those_of_the_applied_kernel(scheme, tol):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 7, (3, 2), padding=1), nn.Flatten(),
        nn.Linear(7 * 72, 4),
    ).eval()  # fmt: skip
    decomposer = Decomposer(wanted=scheme)
    plan = make_plan(model, Tolerance(tol), input_size=(3, 8, 8), decomposer=decomposer)
    shipped = factorize(model, plan, decomposer=decomposer)
    records = {record.name: record for record in describe_layers(model, shipped, plan)}
    assert {name: layer.scheme for name, layer in plan.factorized().items()} == {"1": scheme, "2": scheme}
    for name, layer in plan.factorized().items():
        dense, record = model.get_submodule(name), records[name]
        kernel = response(shipped.get_submodule(name), dense.in_channels, dense.kernel_size)
        # As a check of the response itself.
        applied = response(dense, dense.in_channels, dense.kernel_size)
        assert torch.allclose(applied, dense.weight.detach().double(), atol=1e-5)
        whole = scheme == "tucker2" and layer.ranks[0] == dense.out_channels  # then the inputs are what is reduced
        matrix = kernel.transpose(0, 1).flatten(1) if whole else unfolding(scheme, kernel)
        sigma = torch.linalg.svdvals(matrix)[: layer.ranks[1 if whole else 0]]
        assert record.ranks == layer.ranks
        assert record.parameters == layer.parameters
        assert record.sigma_max == pytest.approx(float(sigma[0]), rel=1e-5)
        assert record.sigma_min == pytest.approx(float(sigma[-1]), rel=1e-3)
        assert record.norm == pytest.approx(float(kernel.norm()), rel=1e-5)
        difference = (kernel - dense.weight.detach().double()).norm() / dense.weight.detach().double().norm()
        assert record.relative_error == pytest.approx(float(difference), rel=1e-4)
        assert record.relative_error <= tol


def test_a_fused_projection_is_described_with_the_singular_values_of_its_three_parts():
    model, _, size = family("beit")
    decomposer = Decomposer(wanted="split")
    plan = make_plan(model, Tolerance(0.6), input_size=size, decomposer=decomposer)
    shipped = factorize(model, plan, decomposer=decomposer)
    record = next(r for r in describe_layers(model, shipped, plan) if r.name == "blocks.0.attn.qkv")
    layer = shipped.blocks[0].attn.qkv
    applied = layer(torch.eye(24)).T.double().detach()
    dense = model.blocks[0].attn.qkv.weight.detach().double()
    values = [torch.linalg.svdvals(part)[:rank] for part, rank in zip(applied.chunk(3), record.ranks, strict=True)]
    sigma = torch.cat(values).sort(descending=True).values
    assert (record.scheme, record.parameters) == ("split", sum(record.ranks) * (24 + 24))
    assert record.sigma_max == pytest.approx(float(sigma[0]), rel=1e-5)
    assert record.sigma_min == pytest.approx(float(sigma[-1]), rel=1e-4)
    assert record.norm == pytest.approx(float(applied.norm()), rel=1e-5)
    assert record.relative_error == pytest.approx(float((applied - dense).norm() / dense.norm()), rel=1e-4)


def test_a_standardised_convolution_is_compared_with_the_weight_it_applied():
    model, _, size = family("standardised")
    plan = make_plan(model, UniformRank(4), input_size=size, decomposer=Decomposer(wanted="matrix"))
    record = next(r for r in describe_layers(model, factorize(model, plan), plan) if r.name == "2")
    weight = model[2].weight.detach().double().flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    sigma = torch.linalg.svdvals(weight)
    assert record.kind == "StdConv2d"
    assert record.dense_norm == pytest.approx(float(weight.norm()), rel=1e-5)
    assert record.relative_error == pytest.approx(float(sigma[4:].norm() / sigma.norm()), rel=1e-4)
    assert record.sigma_max == pytest.approx(float(sigma[0]), rel=1e-5)


def test_groups_are_described_together():
    model, _, size = family("grouped")
    plan = make_plan(model, UniformRank(2), input_size=size, decomposer=Decomposer(wanted="matrix"))
    record = next(r for r in describe_layers(model, factorize(model, plan), plan) if r.name == "3")
    groups = [torch.linalg.svdvals(part.flatten(1).double()) for part in model[3].weight.detach().chunk(2)]
    kept = torch.cat([sigma[:2] for sigma in groups])
    assert (record.ranks, record.parameters) == ((2,), 2 * 2 * (6 + 4 * 9))
    assert record.sigma_max == pytest.approx(float(kept.max()), rel=1e-5)
    assert record.sigma_min == pytest.approx(float(kept.min()), rel=1e-5)
    tail = torch.cat([sigma[2:] for sigma in groups])
    assert record.relative_error == pytest.approx(float(tail.norm() / torch.cat(groups).norm()), rel=1e-4)


def test_the_rank_that_fine_tuning_chose_is_recorded():
    model = tiny_cnn()
    decomposer = Decomposer(wanted="matrix")
    plan = make_plan(model, UniformRank(5), input_size=(3, 8, 8), exclude=["6"], decomposer=decomposer)
    low_rank = factorize_for_training(model, plan)
    for name in ("3", "9"):
        U, S, V = low_rank.get_submodule(name).factors()
        low_rank.get_submodule(name).set_factors_(Factors(U[:, :, :2], S[:, :2, :2], V[:, :, :2]))
    records = {record.name: record for record in describe_layers(model, fold_(low_rank), plan)}
    assert (records["3"].ranks, records["3"].parameters) == ((2,), 2 * (12 + 72))
    assert (records["9"].ranks, records["9"].parameters) == ((2,), 2 * (16 + 12))


def test_condition_numbers_before_training_are_those_of_the_truncated_weights():
    model = tiny_mlp()
    with torch.no_grad():
        model[4].weight.copy_(matrix_with_spectrum([5.0, 3.0, 2.0, 0.1], 24, 40))
    plan = make_plan(model, UniformRank(3), input_size=(3, 4, 4))
    low_rank = factorize_for_training(model, plan)
    assert condition_numbers(low_rank) == {"4": pytest.approx(2.5, rel=1e-5)}
    with torch.no_grad():
        low_rank[4].S.zero_()
    assert condition_numbers(low_rank) == {}
    assert condition_numbers(fold_(low_rank)) == {}


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
def test_condition_numbers_of_convolutions_are_those_of_the_matrix_that_the_scheme_truncates(scheme):
    model, decomposer = tiny_cnn(), Decomposer(wanted=scheme)
    plan = make_plan(model, TrainingStart(0.7), input_size=(3, 8, 8), decomposer=decomposer)
    kappas = condition_numbers(factorize_for_training(model, plan, decomposer=decomposer))
    shipped = factorize(model, plan, decomposer=decomposer)
    assert list(kappas) == ["3", "6", "9"]
    kernel, rank = shipped[3].weight.detach().double(), plan.factorized()["3"].ranks[0]
    sigma = torch.linalg.svdvals(unfolding(scheme, kernel))[:rank]
    assert kappas["3"] == pytest.approx(float(sigma[0] / sigma[-1]), rel=1e-4)
    # Of all groups together.
    groups = [torch.linalg.svdvals(part.flatten(1)) for part in shipped[6].weight.detach().double().chunk(3)]
    sigma = torch.cat([part[: plan.factorized()["6"].ranks[0]] for part in groups])
    assert kappas["6"] == pytest.approx(float(sigma.max() / sigma.min()), rel=1e-4)


def test_the_condition_number_of_a_split_layer_is_that_of_all_its_parts():
    model, _, size = family("beit")
    decomposer = Decomposer(wanted="split")
    plan = make_plan(model, Tolerance(0.6), input_size=size, decomposer=decomposer)
    low_rank = factorize_for_training(model, plan, decomposer=decomposer)
    kappas, name = condition_numbers(low_rank), "blocks.0.attn.qkv"
    assert set(kappas) == set(plan.factorized())
    dense, ranks = model.blocks[0].attn.qkv.weight.detach().double(), plan.factorized()[name].ranks
    sigma = torch.cat([torch.linalg.svdvals(W)[:rank] for W, rank in zip(dense.chunk(3), ranks, strict=True)])
    assert kappas[name] == pytest.approx(float(sigma.max() / sigma.min()), rel=1e-4)
    records = describe_layers(model, fold_(low_rank), plan, start_kappas=kappas)
    record = next(record for record in records if record.name == name)
    assert record.start_kappa == kappas[name] == pytest.approx(record.kappa, rel=1e-4)


def test_dense_layers_keep_their_reason_and_have_no_figures():
    model = tiny_cnn()
    plan = make_plan(model, Tolerance(0.5), input_size=(3, 8, 8))
    records = describe_layers(model, factorize(model, plan), plan)
    assert [record.name for record in records] == [layer.name for layer in plan.layers]
    depthwise = next(record for record in records if record.name == "5")
    assert depthwise.reason == "depthwise convolution"
    assert depthwise.ranks == ()
    assert depthwise.parameters is depthwise.kappa is depthwise.relative_error is None


def test_singular_values_are_right_whatever_the_factors_are():
    model = tiny_cnn()
    decomposer = Decomposer(wanted="matrix")
    plan = make_plan(model, Tolerance(0.5), input_size=(3, 8, 8), exclude=["6"], decomposer=decomposer)
    shipped = copy.deepcopy(factorize(model, plan))
    assert plan.factorized()
    with torch.no_grad():  # neither of them orthonormal any more
        for parameter in shipped.parameters():
            parameter.copy_(torch.randn_like(parameter))
    for record in describe_layers(model, shipped, plan):
        if record.scheme == "dense":
            continue
        module = shipped.get_submodule(record.name)
        applied = module.expand.weight.detach().double().flatten(1) @ module.reduce.weight.detach().double().flatten(1)
        sigma = torch.linalg.svdvals(applied)[: record.ranks[0]]
        assert record.sigma_max == pytest.approx(float(sigma[0]))
        assert record.sigma_min == pytest.approx(float(sigma[-1]))
