import copy
import itertools

import pytest
import torch
from artifacts import FAMILIES, disturbed, family
from low_rank_layers import CASES
from networks import (
    ALL_LAYERS,
    CONVOLUTIONS,
    DEPTHWISE_CONVOLUTIONS,
    matrix_with_spectrum,
    snapshot,
    tiny_cnn,
    tiny_mlp,
    with_weight,
)
from torch import nn

from lrcompress.errors import EvaluationError
from lrcompress.factorize import factorize
from lrcompress.measure import linear_part, measure_operator_norms, operator_norm
from lrcompress.nn import LowRankLayer
from lrcompress.plan import Decomposer, UniformRank, make_plan


def input_size(layer):
    """A small input of the layer, without a batch."""
    if not hasattr(layer, "kernel_size"):
        return (layer.in_features,)
    return (layer.in_channels, *(6, 7, 5)[: len(layer.kernel_size)])


def matrix_of(layer, size):
    """The matrix of a layer without its bias: what it makes of each unit vector, less what it makes of zero."""
    layer = copy.deepcopy(layer).double()
    count = torch.Size(size).numel()
    with torch.no_grad():
        columns = layer(torch.eye(count, dtype=torch.float64).view(count, *size))
        columns = columns - layer(torch.zeros(1, *size, dtype=torch.float64))
    return columns.flatten(1).T


def largest(layer, size):
    return float(torch.linalg.svdvals(matrix_of(layer, size))[0])


def assert_is_norm(layer, expected):
    """A lower bound that is not far away."""
    size = input_size(layer)
    found = operator_norm(linear_part(layer), size)
    assert (found.converged, found.input_size) == (True, size)
    assert 0.9995 * expected <= found.value <= expected * (1 + 1e-12)


GEOMETRIES = {
    f"{stride}, {padding}, {dilation}, {groups}, {transposed}": (stride, padding, dilation, groups, transposed)
    for stride, padding, dilation, groups, transposed in itertools.product(
        (1, 2), (0, 1), (1, 2), (1, 2), (False, True)
    )
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_of_a_convolution_it_is_that_of_its_matrix(geometry):
    stride, padding, dilation, groups, transposed = geometry
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(4, 6, 3, stride=stride, padding=padding, dilation=dilation, groups=groups)
    assert_is_norm(layer, largest(layer, input_size(layer)))


@pytest.mark.parametrize(
    "make", (ALL_LAYERS | DEPTHWISE_CONVOLUTIONS).values(), ids=(ALL_LAYERS | DEPTHWISE_CONVOLUTIONS).keys()
)
def test_of_every_kind_of_layer_it_is_that_of_its_matrix(make):
    layer = make()
    assert_is_norm(layer, largest(layer, input_size(layer)))


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_of_a_low_rank_layer_it_is_that_of_the_dense_layer_it_is_equal_to(make):
    dense, low_rank = make()
    dense, low_rank = dense.double(), low_rank.double()
    equal = with_weight(dense, low_rank.weight, None)
    assert_is_norm(low_rank, largest(equal, input_size(dense)))


def test_of_a_linear_layer_it_is_the_largest_singular_value():
    layer = nn.Linear(9, 7)
    with torch.no_grad():
        layer.weight.copy_(matrix_with_spectrum([3.0, 2.0, 1.0], 7, 9))
    assert operator_norm(linear_part(layer), (9,)).value == pytest.approx(3, rel=1e-6)


def test_a_stricter_tolerance_comes_closer():
    layer = nn.Conv2d(4, 6, 3, padding=1)
    size = input_size(layer)
    errors = [
        1 - operator_norm(linear_part(layer), size, tolerance=tolerance).value / largest(layer, size)
        for tolerance in (1e-3, 1e-6, 1e-12)
    ]
    assert errors[0] > 10 * errors[1] > 0
    assert abs(errors[2]) < 1e-8


def test_two_singular_values_close_together_do_not_end_it_too_early():
    """A single vector that begins near the second one rests there: the larger one grows slowly."""
    for seed in range(20):
        weight = matrix_with_spectrum([1.0, 0.996, 0.5, 0.4], 120, 120, seed=seed)
        assert operator_norm(lambda x: x @ weight.T, (120,), seed=seed).value > 1 - 1e-4  # noqa: B023  # called now


def test_it_is_not_that_of_the_unfolded_kernel():
    layer = CONVOLUTIONS["3x3"]()
    kernel = float(torch.linalg.svdvals(layer.weight.detach().flatten(1).double())[0])
    assert operator_norm(linear_part(layer), (4, 9, 9)).value > 1.2 * kernel


def test_a_layer_whose_weights_are_zero_has_none():
    found = operator_norm(lambda x: 0 * x, (3, 4))
    assert (found.value, found.converged, found.iterations) == (0.0, True, 1)


def test_what_has_not_converged_says_so_and_is_a_lower_bound():
    weight = matrix_with_spectrum([1.0 - 0.01 * index for index in range(10)], 10, 10)
    found = operator_norm(lambda x: x @ weight.T, (10,), most_iterations=4)
    assert (found.converged, found.iterations) == (False, 4)
    assert 0.8 < found.value < 1


def test_no_step_makes_it_smaller():
    weight = matrix_with_spectrum([1.0 - 0.01 * index for index in range(10)], 10, 10)
    values = [operator_norm(lambda x: x @ weight.T, (10,), most_iterations=steps).value for steps in range(1, 30)]
    assert values == sorted(values)
    assert values[0] < values[-1] < 1


def test_it_ends_where_a_step_changes_it_by_no_more_than_the_tolerance():
    weight = matrix_with_spectrum([1.0, 0.9, 0.8, 0.7], 10, 10)
    values = [operator_norm(lambda x: x @ weight.T, (10,), most_iterations=steps).value for steps in range(1, 40)]
    steps = next(n for n in range(1, 39) if abs(values[n] - values[n - 1]) <= 1e-3 * values[n]) + 1
    found = operator_norm(lambda x: x @ weight.T, (10,), tolerance=1e-3)
    assert (found.iterations, found.value, found.converged) == (steps, values[steps - 1], True)


def test_the_start_is_that_of_the_seed():
    operator = linear_part(CONVOLUTIONS["3x3"]())
    state = torch.get_rng_state()
    few = [operator_norm(operator, (4, 6, 6), seed=seed, most_iterations=3).value for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert torch.equal(torch.get_rng_state(), state)
    assert operator_norm(operator, (4, 6, 6), seed=1).value == pytest.approx(
        operator_norm(operator, (4, 6, 6)).value, rel=5e-4
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    model = tiny_mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = value
    with pytest.raises(EvaluationError, match="the weights of `1` are not finite") as refused:
        measure_operator_norms(model, (3, 4, 4))
    assert refused.value.hint


def test_every_layer_is_measured_on_the_input_that_it_has():
    model, seen = tiny_cnn(), []
    norms = measure_operator_norms(model, (3, 8, 8), on_progress=lambda done, total: seen.append((done, total)))
    sizes = {"0": (3, 8, 8), "3": (8, 8, 8), "5": (12, 4, 4), "6": (12, 4, 4), "9": (12,), "11": (16,)}
    assert {name: norm.input_size for name, norm in norms.items()} == sizes
    assert list(norms) == list(sizes)
    assert seen == [(done, 6) for done in range(1, 7)]
    for name, norm in norms.items():
        assert norm.value == pytest.approx(largest(model.get_submodule(name), sizes[name]), rel=5e-4)


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
def test_a_compressed_network_has_the_same_layers_and_its_factors_are_none(scheme):
    model, decomposer = tiny_cnn(), Decomposer(wanted=scheme)
    plan = make_plan(model, UniformRank(2), input_size=(3, 8, 8), decomposer=decomposer)
    small = factorize(model, plan, decomposer=decomposer)
    dense, norms = measure_operator_norms(model, (3, 8, 8)), measure_operator_norms(small, (3, 8, 8))
    assert list(norms) == list(dense)
    assert {name for name in norms if isinstance(small.get_submodule(name), LowRankLayer)} == {"3", "6", "9"}
    for name, norm in norms.items():
        assert norm.input_size == dense[name].input_size
        equal = model.get_submodule(name)
        if name in plan.factorized():
            equal = with_weight(equal, small.get_submodule(name).weight, None)
        else:
            assert norm == dense[name]
        assert norm.value == pytest.approx(largest(equal, norm.input_size), rel=5e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_every_family_have_the_same_layers_before_and_after(name):
    model, _, size = family(name)
    plan = make_plan(model, UniformRank(2), input_size=size)
    dense = measure_operator_norms(model, size)
    norms = measure_operator_norms(factorize(model, plan), size)
    assert list(norms) == list(dense)
    assert set(plan.factorized()) <= set(norms)
    assert all(norm.value > 0 for norm in norms.values())


class Unusual(nn.Module):
    """A convolution called with inputs of two sizes, a layer that nobody calls, and one that is not what it seems."""

    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    def __init__(self):
        super().__init__()
        self.twice, self.unused = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(4, 4)
        self.other, self.head = Unusual.Doubling(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.twice(self.twice(x)[:, :, ::4, ::4])
        return self.head(input=self.other(x.mean((2, 3))))


def test_of_several_inputs_the_one_of_the_largest_norm_counts_and_what_is_not_known_is_left_out():
    model = Unusual()
    norms = measure_operator_norms(model, (3, 8, 8))
    assert list(norms) == ["twice", "head"]
    sizes = [(3, 8, 8), (3, 2, 2)]
    values = [largest(model.twice, size) for size in sizes]
    assert norms["twice"].input_size == sizes[0 if values[0] > values[1] else 1]
    assert norms["twice"].value == pytest.approx(max(values), rel=5e-4)


class NeedsItsAttention(nn.Module):
    """Asks of its attention what the stand-in, whose layers are called, has not."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        assert self.attention.kdim == 8
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_a_network_that_needs_its_attention_as_it_is_has_the_other_layers_measured():
    assert list(measure_operator_norms(NeedsItsAttention(), (8, 2, 2))) == ["head"]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_is(training):
    model = disturbed(tiny_cnn()).train(training)
    before, kinds = snapshot(model), [type(module) for module in model.modules()]
    with torch.no_grad():  # gradients of the layers' inputs are taken all the same
        measure_operator_norms(model, (3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == kinds
    assert all(module.training is training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_linear_part_is_a_copy():
    layer = nn.Linear(3, 2)
    part = linear_part(layer)
    assert part.bias is None
    assert part.weight.dtype == torch.float64
    assert layer.bias is not None
    assert layer.weight.dtype == torch.float32
    assert layer.weight.requires_grad
