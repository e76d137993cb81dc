import copy
import math

import pytest
import torch
from artifacts import family
from networks import (
    ALL_LAYERS,
    CONVOLUTIONS,
    OTHER_AXES,
    SAME_CONVOLUTIONS,
    example_input,
    relative_difference,
    snapshot,
    tiny_cnn,
    tiny_mlp,
)
from timm.layers import StdConv2d
from torch import nn

from lrcompress.errors import EvaluationError
from lrcompress.factorize import factorize
from lrcompress.nn import expose_, twin
from lrcompress.plan import Candidate, Decomposer, UniformRank, calibrate, find_layers, make_plan, measure_metrics
from lrcompress.plan.calibrate import DAMPING

SIZE = (3, 8, 8)
WITH_PATCHES = {
    name: make
    for name, make in (CONVOLUTIONS | SAME_CONVOLUTIONS | OTHER_AXES).items()
    if max(make().kernel_size) > 1
}  # fmt: skip


def batches(count=3, *, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # A few strong directions, so that what the images say differs from what the weights say.
    patterns = torch.randn(2, *size, generator=generator)
    weights = torch.randn(count, 4, 2, generator=generator)
    noise = torch.randn(count, 4, *size, generator=generator)
    return list(torch.einsum("bnp,pchw->bnchw", weights, patterns) + 0.1 * noise)


def measure(model, images, names=None, *, size=SIZE, **options):
    """The metrics of the named layers, of all that may be factorised without names."""
    found = find_layers(model, size, include_first=True, include_classifier=True)
    wanted = {one.name: one for one in found if not one.reason and (names is None or one.name in names)}
    count = sum(map(len, images))
    return measure_metrics(expose_(twin(model)), wanted, images, images=count, **options)


class Alone(nn.Module):
    """Gives its layer what it takes, whatever the shape, out of images; all at once or one after the other."""

    def __init__(self, layer, shape, *, batched=True):
        super().__init__()
        self.layer, self.shape, self.batched = layer, shape, batched

    def forward(self, images):
        x = images.reshape(len(images), *self.shape)
        return self.layer(x) if self.batched else torch.stack([self.layer(one) for one in x])


def measure_layer(layer, xs, **options):
    candidate = Candidate("layer", type(layer).__name__, tuple(layer.weight.shape), "", layer.weight.numel(), layer)
    images = [x.reshape(len(x), 1, 1, -1) for x in xs]
    model = Alone(layer, xs[0].shape[1:], **options)
    return measure_metrics(model, {"layer": candidate}, images, images=sum(map(len, xs)))["layer"]


def matrices(layer):
    """The weight of each group, outputs first, as torch's documentation lays it out."""
    if isinstance(layer, nn.Linear):
        return [layer.weight.detach().double()]
    if layer.transposed:
        return [part.transpose(0, 1).flatten(1).detach().double() for part in layer.weight.chunk(layer.groups)]
    return [part.flatten(1).detach().double() for part in layer.weight.chunk(layer.groups)]


def outputs_without_bias(layer, x):
    """One row per position and image."""
    layer = copy.deepcopy(layer)
    layer.bias = None
    with torch.no_grad():
        y = layer(x)
    return (y if isinstance(layer, nn.Linear) else y.movedim(1, -1)).flatten(0, -2).double()


@pytest.mark.parametrize("make", ALL_LAYERS.values(), ids=ALL_LAYERS.keys())
def test_the_output_gram_is_the_sum_over_the_outputs_without_bias_and_the_damping(make):
    torch.manual_seed(0)
    layer = make()
    xs = [example_input(layer, seed=seed) for seed in range(2)]
    rows = torch.cat([outputs_without_bias(layer, x) for x in xs])
    groups = rows.chunk(getattr(layer, "groups", 1), dim=1)
    metric = measure_layer(layer, xs)
    assert metric.output_gram.shape[0] == len(groups)
    for found, y, W in zip(metric.output_gram, groups, matrices(layer), strict=True):
        expected = y.T @ y / y.square().sum() + DAMPING * W @ W.T / W.square().sum()
        assert relative_difference(found, expected) < 1e-5


def patches(layer, x):
    """Every patch that the kernel is applied to: what a convolution gives whose kernels are one at one place each."""
    picking = copy.deepcopy(layer)
    length = layer.weight[0].numel()
    picking.weight = nn.Parameter(torch.eye(length).reshape(length, *layer.weight.shape[1:]))
    return outputs_without_bias(picking, x)


@pytest.mark.parametrize("make", WITH_PATCHES.values(), ids=WITH_PATCHES.keys())
def test_the_input_gram_is_the_sum_over_all_patches_and_the_damping_where_all_are_taken(make, monkeypatch):
    monkeypatch.setattr(calibrate, "PATCHES_PER_ENTRY", 10**6)
    torch.manual_seed(0)
    layer = make()
    xs = [example_input(layer, seed=seed) for seed in range(2)]
    rows, (W,) = torch.cat([patches(layer, x) for x in xs]), matrices(layer)
    scale = (rows @ W.T).square().sum()
    expected = rows.T @ rows / scale + DAMPING * torch.eye(W.shape[1]) / W.square().sum()
    metric = measure_layer(layer, xs)
    assert relative_difference(metric.input_gram, expected) < 1e-5
    # Both moments are on one scale: that of the outputs is that of the inputs seen through the weight.
    assert relative_difference(metric.output_gram[0], W @ expected @ W.T) < 1e-5


def test_the_patches_of_a_plain_convolution_are_those_of_unfold():
    layer = nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1))
    x = example_input(layer)
    unfolded = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    assert torch.allclose(patches(layer, x), unfolded.transpose(1, 2).flatten(0, 1).double(), atol=1e-6)


def test_of_many_patches_some_are_taken_at_random_and_the_same_ones_again(monkeypatch):
    monkeypatch.setattr(calibrate, "PATCHES_PER_ENTRY", 0)  # one of each batch
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3)
    xs = [torch.randn(2, 3, 9, 9) for _ in range(4)]
    metric = measure_layer(layer, xs)
    sampled = metric.input_gram.double() - DAMPING * torch.eye(27) / layer.weight.double().square().sum()
    assert int(torch.linalg.matrix_rank(sampled, hermitian=True, rtol=1e-4)) == 4
    every = torch.cat([patches(layer, x) for x in xs])
    # The span of the sample holds four of the patches.
    directions = torch.linalg.eigh(sampled).eigenvectors[:, -4:]
    outside = (every - every @ directions @ directions.T).norm(dim=1) / every.norm(dim=1)
    assert int((outside < 1e-3).sum()) == 4
    assert torch.equal(measure_layer(layer, xs).input_gram, metric.input_gram)


def test_patches_that_are_too_long_are_not_gathered(monkeypatch):
    layer = nn.Conv2d(4, 6, 3)
    monkeypatch.setattr(calibrate, "LARGEST_PATCH", 36)
    assert measure_layer(layer, [example_input(layer)]).input_gram.shape == (36, 36)
    monkeypatch.setattr(calibrate, "LARGEST_PATCH", 35)
    metric = measure_layer(layer, [example_input(layer)])
    assert metric.input_gram is None
    assert metric.output_gram.shape == (1, 6, 6)


WITHOUT_PATCHES = {name: make for name, make in ALL_LAYERS.items() if name not in WITH_PATCHES}


@pytest.mark.parametrize("make", WITHOUT_PATCHES.values(), ids=WITHOUT_PATCHES.keys())
def test_layers_that_no_scheme_wants_the_inputs_of_have_none(make):
    layer = make()
    assert measure_layer(layer, [example_input(layer)]).input_gram is None


def test_both_moments_of_a_layer_that_is_called_twice_are_added(monkeypatch):
    monkeypatch.setattr(calibrate, "PATCHES_PER_ENTRY", 10**6)
    layer = nn.Conv2d(4, 4, 3, bias=False)
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        inputs = [x, layer(x)]
    rows = torch.cat([outputs_without_bias(layer, one) for one in inputs])
    seen = torch.cat([patches(layer, one) for one in inputs])
    (W,) = matrices(layer)
    candidate = Candidate("0", "Conv2d", (4, 4, 3, 3), "", layer.weight.numel(), layer)
    metric = measure_metrics(nn.Sequential(layer, layer), {"0": candidate}, [x], images=2)["0"]
    damped = rows.T @ rows / rows.square().sum() + DAMPING * W @ W.T / W.square().sum()
    assert relative_difference(metric.output_gram[0], damped) < 1e-5
    expected = seen.T @ seen / rows.square().sum() + DAMPING * torch.eye(36) / W.square().sum()
    assert relative_difference(metric.input_gram, expected) < 1e-5


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_a_layer_that_is_called_without_a_batch_is_measured_alike(kind, monkeypatch):
    monkeypatch.setattr(calibrate, "PATCHES_PER_ENTRY", 10**6)
    layer = kind(3, 5, 3)
    x = example_input(layer)
    found, expected = measure_layer(layer, [x], batched=False), measure_layer(layer, [x])
    assert relative_difference(found.output_gram, expected.output_gram) < 1e-6
    assert relative_difference(found.input_gram, expected.input_gram) < 1e-6


class ByKeyword(nn.Module):
    """Calls its layer by the name of the argument."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.inner(input=self.stem(x.flatten(1))))


def test_a_layer_that_is_called_by_keyword_is_measured():
    model, images = ByKeyword(), torch.randn(5, 3, 2, 2)
    y = outputs_without_bias(model.inner, model.stem(images.flatten(1)))
    (W,) = matrices(model.inner)
    expected = y.T @ y / y.square().sum() + DAMPING * W @ W.T / W.square().sum()
    found = measure(model, [images], ["inner"], size=(3, 2, 2))["inner"]
    assert relative_difference(found.output_gram[0], expected) < 1e-5


def test_a_standardised_convolution_is_measured_with_the_weight_it_applies(monkeypatch):
    monkeypatch.setattr(calibrate, "PATCHES_PER_ENTRY", 10**6)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), StdConv2d(4, 6, 3, stride=2), nn.Flatten(), nn.Linear(96, 2)).eval()
    images = torch.randn(3, *SIZE)
    metric = measure(model, [images], ["1"])["1"]
    weight = model[1].weight.flatten(1).double()
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(weight.reshape(plain.weight.shape))
        x = model[0](images)
    y, seen = outputs_without_bias(plain, x), patches(plain, x)
    damped = y.T @ y / y.square().sum() + DAMPING * weight @ weight.T / weight.square().sum()
    assert relative_difference(metric.output_gram[0], damped) < 1e-4
    expected = seen.T @ seen / y.square().sum() + DAMPING * torch.eye(36) / weight.square().sum()
    assert relative_difference(metric.input_gram, expected) < 1e-4


def test_layers_of_stand_ins_are_measured_in_the_exposed_network():
    model, _, size = family("multihead attention")
    block, seen = model.encoder.layers[0], []
    handle = block.ln_1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(3, *size)
    with torch.no_grad():
        model(images)
    handle.remove()
    attention = block.self_attention
    W = attention.in_proj_weight.detach().double()
    y = seen[0].flatten(0, 1).double() @ W.T
    expected = y.T @ y / y.square().sum() + DAMPING * W @ W.T / W.square().sum()
    name = "encoder.layers.encoder_layer_0.self_attention.in_proj"
    assert relative_difference(measure(model, [images], [name], size=size)[name].output_gram[0], expected) < 1e-4


def error_of_outputs(model, low_rank, images):
    with torch.no_grad():
        return relative_difference(low_rank(images), model(images))


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
def test_at_equal_ranks_unseen_images_of_the_same_kind_change_less_than_by_a_plain_truncation(scheme):
    model = tiny_cnn()
    *seen, unseen = batches(9)
    errors = []
    for metrics in ({}, measure(model, seen, ["3", "9"])):
        decomposer = Decomposer(metrics, wanted=scheme)
        plan = make_plan(model, UniformRank(4), input_size=SIZE, exclude=["6"], decomposer=decomposer)
        assert {name: layer.scheme for name, layer in plan.factorized().items()} == {"3": scheme, "9": "matrix"}
        errors.append(error_of_outputs(model, factorize(model, plan, decomposer=decomposer), unseen))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2", "auto"])
@pytest.mark.parametrize("images", [torch.zeros(2, *SIZE), torch.randn(1, *SIZE)], ids=["black", "a single one"])
def test_images_that_say_little_do_no_harm(images, scheme):
    model = tiny_cnn(bias=False)
    decomposer = Decomposer(measure(model, [images]), wanted=scheme)
    plan = make_plan(model, UniformRank(3), input_size=SIZE, decomposer=decomposer)
    low_rank = factorize(model, plan, decomposer=decomposer)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in low_rank.parameters())
    assert len(plan.factorized()) >= 2
    for layer in plan.factorized().values():
        assert 0 <= layer.relative_error < 1


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_kernel_that_is_blind_to_all_images_is_truncated_by_its_weights(noise, scheme):
    """Edge filters, whose taps sum to zero, over flat images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(288, 2)).eval()
    with torch.no_grad():
        model[1].weight.sub_(model[1].weight.mean((1, 2, 3), keepdim=True))
        model[0].weight[:] = model[0].weight[:1]  # all channels are alike
        model[0].bias.fill_(100.0)
    images = 0.5 + noise * torch.randn(4, *SIZE)
    decomposer = Decomposer(measure(model, [images]), wanted=scheme)
    plan = make_plan(model, UniformRank(3), input_size=SIZE, decomposer=decomposer)
    low_rank = factorize(model, plan, decomposer=decomposer)
    assert plan.factorized().keys() == {"1"}
    assert relative_difference(low_rank[1].weight, model[1].weight) < 0.95


def test_calibrating_leaves_the_model_as_it_was():
    model = tiny_mlp(norm=True).train()
    before = snapshot(model)
    measure(model, batches(size=(3, 4, 4)), size=(3, 4, 4))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_images_are_seen_in_eval_mode_and_the_mode_is_restored(training):
    seen = []

    class Noting(nn.Identity):
        def forward(self, x):
            seen.append(self.training)
            return x

    model = nn.Sequential(Noting(), nn.Flatten(), nn.Linear(12, 4)).train(training)
    candidate = Candidate("2", "Linear", (4, 12), "", model[2].weight.numel(), model[2])
    measure_metrics(model, {"2": candidate}, [torch.randn(2, 3, 2, 2)], images=2)
    assert seen == [False]
    assert model.training is training


def test_the_images_may_go_through_a_network_around_the_model():
    model = tiny_mlp()
    images = torch.rand(5, 3, 4, 4)
    inside = measure(model, [2 * images - 1], ["4"], size=(3, 4, 4))["4"]
    around = measure(model, [images], ["4"], size=(3, 4, 4), network=lambda pixels: None)
    assert around == {}  # never called: there is nothing to tell
    exposed = expose_(twin(model))
    candidate = {"4": Candidate("4", "Linear", (24, 40), "", exposed[4].weight.numel(), exposed[4])}
    found = measure_metrics(exposed, candidate, [images], images=5, network=lambda pixels: exposed(2 * pixels - 1))
    assert torch.equal(found["4"].output_gram, inside.output_gram)


def test_outputs_that_are_not_finite_are_refused_with_the_layers_name():
    model = tiny_mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    with pytest.raises(EvaluationError, match="outputs of `1` are not finite") as refused:
        measure(model, batches(size=(3, 4, 4)), size=(3, 4, 4))
    assert refused.value.hint
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("per_entry", "batches"), [(0.5, 2), (0.25, 4), (0.1, 1)])
def test_the_patches_of_all_images_together_are_so_many_times_the_entries_of_one(per_entry, batches, monkeypatch):
    monkeypatch.setattr(calibrate, "PATCHES_PER_ENTRY", per_entry)
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3)
    xs = [torch.randn(2, 3, 9, 9) for _ in range(batches)]
    metric = measure_layer(layer, xs)
    sampled = metric.input_gram.double() - DAMPING * torch.eye(27) / layer.weight.double().square().sum()
    taken = int(torch.linalg.matrix_rank(sampled, hermitian=True, rtol=1e-4))
    assert taken == batches * math.ceil(per_entry * 27 / batches)
