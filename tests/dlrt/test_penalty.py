import math

import pytest
import torch
from low_rank_layers import like
from networks import matrix_with_spectrum, tiny_cnn, tiny_mlp
from timm.layers import StdConv2d
from torch import nn

from lrcompress.dlrt import Circumstances, Dlrt, DlrtOptions
from lrcompress.dlrt.penalty import AIM, FALL, FIRST_BETA, LARGEST_BETA, RISE, SMALLEST_BETA, Penalty
from lrcompress.linalg import Factors
from lrcompress.nn import LowRankLinear, MatrixConv, TuckerConv, factored, factored_layers
from lrcompress.plan import Tolerance
from lrcompress.schemes import find_scheme


def by_hand(matrix, *, scale_free=False):
    """R, or R/α², from the singular values of a matrix."""
    squares = torch.linalg.svdvals(matrix.detach().double()).square()
    spread = float((squares - squares.mean()).square().sum().sqrt())
    return spread / float(squares.mean()) if scale_free else spread


def network():
    """A linear layer, a grouped convolution and a Tucker-2 one in the form that is trained."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "linear": factored(LowRankLinear(9, 7, 4, bias=True)),
            "groups": factored(like(nn.Conv2d(8, 6, 3, groups=2), MatrixConv, (2,))),
            "kernel": factored(like(nn.Conv2d(5, 6, 3), TuckerConv, (4, 3))),
        }
    )


def penalty_of(model, **options):
    layers = factored_layers(model)
    return Penalty.of(model, layers, DlrtOptions(Tolerance(0.1), **{"beta": 1.0, "penalty": "paper"} | options)), layers


def value(penalty, layers, retained=None):
    return float(penalty.value(layers, retained or {}).detach())


@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_penalty_of_a_network_is_the_weighted_sum_over_layers_and_groups(beta, scale_free):
    penalty, layers = penalty_of(network(), beta=beta, penalty="scale-free" if scale_free else "paper")
    matrices = [layers["linear"].S[0, :, :, 0], *layers["groups"].S[:, :, :, 0], layers["kernel"].S[0].flatten(1)]
    expected = beta * sum(by_hand(matrix, scale_free=scale_free) for matrix in matrices)
    assert value(penalty, layers) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("unfolding", ["output", "both"])
def test_of_a_kernel_that_keeps_all_outputs_the_inputs_are_conditioned(unfolding):
    layer = factored(like(nn.Conv2d(5, 8, 3), TuckerConv, (8, 3)))
    model = nn.ModuleDict({"kernel": layer})
    penalty, layers = penalty_of(model, penalty_unfolding=unfolding)
    inputs = layer.S[0].transpose(0, 1).flatten(1)
    assert value(penalty, layers) == pytest.approx(by_hand(inputs), rel=1e-4)
    sigma = torch.linalg.svdvals(inputs.detach().double())
    known = Circumstances(fixed_ranks={"kernel": (8, 3)})
    kappas = Dlrt(model, DlrtOptions(Tolerance(0.1)), circumstances=known).kappas()
    assert kappas == {"kernel": pytest.approx(float(sigma[0] / sigma[-1]))}
    shipped = layer.fold()
    assert not hasattr(shipped, "core")
    scheme = find_scheme("tucker2")
    found = scheme.conditioned_spectrum(shipped, scheme.spectrum(shipped))
    assert torch.allclose(found, sigma, rtol=1e-5)


@pytest.mark.parametrize(("unfolding", "modes"), [("output", [0]), ("both", [0, 1])])
def test_of_a_kernel_the_asked_unfoldings_count(unfolding, modes):
    penalty, layers = penalty_of(network(), penalty_unfolding=unfolding)
    core = layers["kernel"].S[0]
    expected = sum(by_hand(core.transpose(0, mode).flatten(1)) for mode in modes)
    assert value(penalty, {"kernel": layers["kernel"]}) == pytest.approx(expected, rel=1e-4)
    # A matrix has one unfolding, which is not counted twice.
    matrix = layers["linear"].S[0, :, :, 0]
    assert value(penalty, {"linear": layers["linear"]}) == pytest.approx(by_hand(matrix), rel=1e-4)


def test_a_core_that_only_augmentation_has_made_as_high_as_the_outputs_keeps_its_output_unfolding():
    layer = factored(like(nn.Conv2d(5, 6, 3), TuckerConv, (6, 5)))
    layer.set_factors_(Factors(torch.eye(6)[None], torch.randn(1, 6, 5, 9), torch.eye(5)[None]))
    model = nn.ModuleDict({"kernel": layer})
    penalty, layers = penalty_of(model, penalty_core="augmented", penalty_unfolding="both")
    outputs, inputs = by_hand(layer.S[0].flatten(1)), by_hand(layer.S[0].transpose(0, 1).flatten(1))
    assert value(penalty, layers, {"kernel": (3, 3)}) == pytest.approx(outputs + inputs, rel=1e-4)
    assert value(penalty, layers) == pytest.approx(inputs, rel=1e-4)


@pytest.mark.parametrize("core", ["retained", "augmented"])
def test_of_an_augmented_core_the_retained_block_or_all_of_it_counts(core):
    model = network()
    penalty, layers = penalty_of(model, penalty_core=core)
    retained = {"linear": (2,), "kernel": (3, 1)}
    blocks = {"linear": layers["linear"].S[:, :2, :2], "kernel": layers["kernel"].S[:, :3, :1]}
    for name, block in blocks.items():
        layer = layers[name]
        counted = block if core == "retained" else layer.S
        assert value(penalty, {name: layer}, retained) == pytest.approx(by_hand(counted[0].flatten(1)), rel=1e-4)
        layer.S.grad = None
        penalty.value({name: layer}, retained).backward()
        outside = torch.ones_like(layer.S, dtype=torch.bool)
        outside[:, : block.shape[1], : block.shape[2]] = False
        assert (torch.count_nonzero(layer.S.grad[outside]) == 0) == (core == "retained")


@pytest.mark.parametrize("unfolding", ["output", "both"])
def test_the_gradient_agrees_with_finite_differences(unfolding):
    penalty, layers = penalty_of(network().double(), penalty_unfolding=unfolding, beta=0.5)
    retained, step = {"linear": (3,), "kernel": (3, 2)}, 1e-6
    penalty.value(layers, retained).backward()
    for layer in layers.values():
        direction = torch.randn_like(layer.S)
        with torch.no_grad():
            layer.S.add_(step * direction)
            ahead = penalty.value(layers, retained)
            layer.S.sub_(2 * step * direction)
            behind = penalty.value(layers, retained)
            layer.S.add_(step * direction)
        assert float((layer.S.grad * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-5)


def test_without_a_weight_nothing_is_computed_and_nothing_has_a_gradient():
    penalty, layers = penalty_of(network(), beta=0.0)
    assert value(penalty, layers) == 0
    assert not penalty.value(layers, {}).requires_grad
    assert value(*penalty_of(nn.Linear(2, 2))) == 0


def test_descending_the_penalty_conditions_a_core():
    core = matrix_with_spectrum([5.0, 3.0, 1.0, 0.5], 4, 4).float()
    layer = factored(LowRankLinear(9, 7, 4, bias=False))
    layer.set_factors_(Factors(layer.U.detach(), core[None, :, :, None], layer.V.detach()))
    penalty, layers = penalty_of(nn.ModuleDict({"one": layer}), penalty="scale-free")
    for _ in range(200):
        layer.S.grad = None
        penalty.value(layers, {}).backward()
        with torch.no_grad():
            layer.S.sub_(0.1 * layer.S.grad)
    sigma = torch.linalg.svdvals(layer.S[0, :, :, 0].detach())
    assert float(sigma[0] / sigma[-1]) < 1.5
    assert float(layer.S.detach().norm()) > 5  # not by shrinking it


@pytest.mark.parametrize(
    ("make", "scale_free"),
    [
        (tiny_mlp, False),
        (lambda: tiny_mlp(norm=True), True),
        (tiny_cnn, True),
        (lambda: nn.Sequential(StdConv2d(3, 4, 3)), True),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()), False),
    ],
)
def test_the_scale_free_penalty_is_taken_exactly_where_a_normalisation_hides_the_scale(make, scale_free):
    assert penalty_of(make(), penalty="auto")[0].scale_free is scale_free
    assert penalty_of(make(), penalty="paper")[0].scale_free is False
    assert penalty_of(make(), penalty="scale-free")[0].scale_free is True


def test_weights_rise_where_the_condition_number_is_too_large_and_fall_elsewhere():
    penalty, _ = penalty_of(network(), beta=0.1, max_kappa=5.0)
    penalty.steer_({"linear": 70.0, "kernel": 1.0, "groups": math.inf})
    assert penalty.betas == pytest.approx({"linear": 0.1 * RISE, "groups": 0.1 * RISE, "kernel": 0.1 * FALL})
    for _ in range(100):
        penalty.steer_({"linear": 7.0, "kernel": 1.0})
    assert penalty.betas == pytest.approx({"linear": LARGEST_BETA, "groups": 0.1 * RISE, "kernel": SMALLEST_BETA})


@pytest.mark.parametrize(("kappa", "factor"), [(5.0, 1 / AIM**2), (AIM * 5.0, 1.0), (4.0, 0.64 / AIM**2), (1.0, FALL)])
def test_near_the_largest_condition_number_a_weight_hardly_moves_and_at_it_still_rises(kappa, factor):
    penalty, _ = penalty_of(network(), beta=0.1, max_kappa=5.0)
    penalty.steer_({"linear": kappa})
    assert penalty.betas["linear"] == pytest.approx(0.1 * factor)


def test_a_largest_condition_number_needs_no_weight_to_start_with():
    penalty, layers = penalty_of(network(), beta=0.0, max_kappa=5.0)
    assert set(penalty.betas.values()) == {FIRST_BETA}
    assert value(penalty, layers) > 0


def test_weights_stay_as_they_are_where_no_condition_number_is_asked_for():
    penalty, _ = penalty_of(network(), beta=0.1)
    penalty.steer_({"linear": 1e9})
    assert set(penalty.betas.values()) == {0.1}


def test_under_autocast_the_penalty_is_that_of_float32():
    penalty, layers = penalty_of(network())
    with torch.autocast("cpu", torch.bfloat16):
        inside = penalty.value(layers, {})
    assert inside.dtype == torch.float32
    assert torch.equal(inside, penalty.value(layers, {}))
