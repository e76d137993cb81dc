import copy
import dataclasses

import pytest
import timm
import torch
import torchvision
from artifacts import FAMILIES, disturbed, family
from networks import matrix_with_spectrum, relative_difference, snapshot, tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.factorize import factorize, factorize_for_training, fold_
from lrcompress.measure import count_parameters
from lrcompress.nn import FactoredLayer, LowRankLayer, count_shipped_parameters, trained_layers
from lrcompress.plan import (
    Decomposer,
    FullRank,
    Tolerance,
    TrainingStart,
    UniformRank,
    find_layers,
    make_plan,
    measure_metrics,
)
from lrcompress.schemes import SCHEMES

SIZE = (3, 8, 8)


def vgg():
    """torchvision's VGG, with smaller fully connected layers."""
    features = torchvision.models.vgg.make_layers([16, "M", 32, "M", 48, 48], batch_norm=True)
    head = (nn.Linear(192, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *head)


def with_arguments(name, **arguments):
    return lambda: timm.create_model(name, num_classes=10, **arguments)


ARCHITECTURES = {
    "timm resnet18": (with_arguments("resnet18", channels=(16, 32, 48, 64)), (3, 32, 32)),
    "torchvision vgg": (vgg, (3, 32, 32)),
    "timm vit_tiny": (with_arguments("vit_tiny_patch16_224", img_size=32, depth=2), (3, 32, 32)),
    "timm test_efficientnet": (with_arguments("test_efficientnet"), (3, 32, 32)),
    **FAMILIES,
}
# The schemes beside the matrix form that fit a layer of each.
CONVOLUTIONAL, PATCHES_AND_PROJECTIONS = {"spatial", "tucker2"}, {"spatial", "tucker2", "split"}
FITTING = dict.fromkeys(("timm vit_tiny", "multihead attention", "swin", "swin v2", "beit"), PATCHES_AND_PROJECTIONS)


def everything(model, size, **options):
    return make_plan(model, FullRank(), input_size=size, include_first=True, include_classifier=True, **options)


def low_rank_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, LowRankLayer)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_full_rank_factorisation_is_exact(name, scheme):
    torch.manual_seed(0)
    make, size = ARCHITECTURES[name]
    # Biases and statistics of a fresh network are zeros and ones, which would hide that one of them was lost.
    model = disturbed(make())
    decomposer = Decomposer(wanted=scheme)
    plan = everything(model, size, decomposer=decomposer)
    images = torch.randn(2, *size)
    low_rank = factorize(model, plan, decomposer=decomposer)
    with torch.no_grad():
        expected = model(images)
        assert relative_difference(expected[0], expected[1]) > 0.01  # the logits are more than the last bias
        assert relative_difference(low_rank(images), expected) < 1e-4
    assert low_rank_layers(low_rank) == list(plan.factorized())
    assert len(plan.factorized()) >= 4
    used = {layer.scheme for layer in plan.factorized().values()}
    assert (scheme in used) == (scheme in {"matrix"} | FITTING.get(name, CONVOLUTIONAL))


@pytest.mark.parametrize("bias", [True, False])
def test_first_convolution_and_bias_free_layers_keep_exactly_their_biases(bias):
    model = disturbed(tiny_cnn(bias=bias))
    shipped = factorize(model, everything(model, SIZE))
    images = torch.randn(2, *SIZE)
    assert relative_difference(shipped(images), model(images)) < 1e-5
    for name in ("0", "3", "9"):
        assert (shipped.get_submodule(name).expand.bias is not None) is bias


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_bias_of_every_form_is_that_of_the_dense_layer(scheme):
    for model, size in ((disturbed(tiny_cnn()), SIZE), (family("beit")[0], (3, 32, 32))):
        decomposer = Decomposer(wanted=scheme)
        plan = make_plan(model, UniformRank(3), input_size=size, decomposer=decomposer)
        low_rank = factorize(model, plan, decomposer=decomposer)
        modules = dict(model.named_modules())
        for name in plan.factorized():
            # In BEiT the bias of the projection lies beside the layer, and is added to its output.
            assert (low_rank.get_submodule(name).bias is None) == (modules[name].bias is None)
            if modules[name].bias is not None:
                assert torch.equal(low_rank.get_submodule(name).bias, modules[name].bias)


@pytest.mark.parametrize("tol", [0.02, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_layer_is_within_the_tolerance_and_one_rank_less_would_not_be(tol, dtype):
    model = tiny_mlp().to(dtype)
    with torch.no_grad():  # a decaying spectrum, so that low ranks are possible
        for layer in (model[1], model[4]):
            U, sigma, Vt = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(U @ torch.diag(sigma * 0.7 ** torch.arange(len(sigma))) @ Vt)
    plan = make_plan(model, Tolerance(tol), input_size=(3, 4, 4), include_first=True)
    shipped = factorize(model, plan)
    assert list(plan.factorized()) == ["1", "4"]
    for name, layer_plan in plan.factorized().items():
        weight = model.get_submodule(name).weight.detach().double()
        module = shipped.get_submodule(name)
        applied = (module.expand.weight.double() @ module.reduce.weight.double()).detach()
        sigma = torch.linalg.svdvals(weight)
        error = float((weight - applied).norm() / weight.norm())
        assert error <= tol
        assert error == pytest.approx(layer_plan.relative_error, rel=1e-4)
        assert sigma[layer_plan.ranks[0] - 1 :].norm() > tol * weight.norm()
        assert module.expand.weight.dtype is module.reduce.weight.dtype is dtype


def tensors_of(model):
    return dict((*model.named_parameters(), *model.named_buffers()))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_stays_dense_is_the_models_own_and_the_model_is_as_it_was(name):
    model, _, size = family(name)
    before, modules = snapshot(model), {path: type(module) for path, module in model.named_modules()}
    plan = make_plan(model, UniformRank(2), input_size=size)
    low_rank = factorize(model, plan)
    assert {path: type(module) for path, module in model.named_modules()} == modules
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    own = {tensor.data_ptr() for tensor in tensors_of(model).values()}
    made = low_rank_layers(low_rank)
    assert made == list(plan.factorized()) != []
    assert count_parameters(low_rank) == count_parameters(model) - plan.removed_parameters()
    for key, tensor in tensors_of(low_rank).items():
        is_new = any(key.startswith(f"{layer}.") for layer in made)
        # The stand-in for the second Swin has a bias with a third of it zero.
        changed = name == "swin v2" and key.endswith("qkv.bias")
        assert (tensor.data_ptr() in own) is not (is_new or changed), key


def test_changing_a_factor_does_not_change_the_model():
    model = tiny_cnn()
    before = snapshot(model)
    low_rank = factorize(model, everything(model, SIZE))
    with torch.no_grad():
        for name in low_rank_layers(low_rank):
            for parameter in low_rank.get_submodule(name).parameters():
                parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_planned_layers_are_replaced_and_all_parameters_are_counted():
    model = tiny_cnn()
    plan = make_plan(model, FullRank(), input_size=SIZE, exclude=["6"])
    low_rank = factorize(model, plan)
    assert low_rank_layers(low_rank) == ["3", "9"]
    convolution, linear = 12 * (12 + 72) - 12 * 72, 12 * (16 + 12) - 16 * 12  # two factors for one weight
    assert count_parameters(low_rank) == count_parameters(model) + convolution + linear


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["multihead attention", "swin", "standardised"])
def test_the_mode_of_the_model_is_kept(training, name):
    model, _, size = family(name)
    low_rank = factorize(model.train(training), everything(model, size))
    assert all(module.training is training for module in low_rank.modules())


@pytest.mark.parametrize("make", [factorize, factorize_for_training])
@pytest.mark.parametrize("change", [{"name": "4.missing"}, {"name": "3"}, {"dense_shape": (24, 41)}])
def test_a_plan_for_another_network_is_refused(change, make):
    model = tiny_mlp()
    plan = make_plan(model, FullRank(), input_size=(3, 4, 4))
    (layer,) = plan.factorized().values()
    other = dataclasses.replace(plan, layers=(dataclasses.replace(layer, **change),))
    with pytest.raises(OptionError) as refused:
        make(model, other)
    assert f"`{change.get('name', '4')}`" in refused.value.message
    assert refused.value.hint


def test_factorising_twice_gives_the_same_bits():
    model = tiny_cnn()
    plan = everything(model, SIZE)
    first, second = (factorize(model, plan).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_progress_is_told_layer_by_layer():
    model, seen = tiny_cnn(), []
    plan = make_plan(model, UniformRank(2), input_size=SIZE)
    factorize(model, plan, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


class ReadsWeights(nn.Module):
    """A network that calls its layers, and reads their weights and biases beside that."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.inner = nn.Linear(8, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.first(x)
        x = self.conv(x) + nn.functional.conv2d(x, self.conv.weight / 2, self.conv.bias, padding=1)
        x = x.mean((2, 3))
        x = self.inner(x) + nn.functional.linear(x, 3 * self.inner.weight, self.inner.bias)
        return self.head(x)


def reading_network():
    torch.manual_seed(0)
    model = ReadsWeights().eval()
    with torch.no_grad():
        model.conv.weight.copy_(matrix_with_spectrum([3, 2], 8, 72).reshape(8, 8, 3, 3))
        model.inner.weight.copy_(matrix_with_spectrum([3, 2], 12, 8))
    return model


def test_a_network_that_reads_its_layers_weights_works_factorised():
    model, x = reading_network(), torch.randn(2, 3, 6, 6)
    small = factorize(model, make_plan(model, Tolerance(0.01), input_size=(3, 6, 6)))
    assert low_rank_layers(small) == ["conv", "inner"]
    assert relative_difference(small(x), model(x)) < 1e-5


# The way of DLRT: U, S and V apart, and folded after training.


def for_training(model, size, policy=None, decomposer=None):
    decomposer = decomposer or Decomposer(wanted="matrix")
    plan = make_plan(model, policy or TrainingStart(0.1), input_size=size, decomposer=decomposer)
    return plan, factorize_for_training(model, plan, decomposer=decomposer)


def factored(model):
    return [name for name, module in model.named_modules() if isinstance(module, FactoredLayer)]


def test_a_network_to_train_shares_nothing_with_the_model():
    for model, size in ((tiny_cnn(), SIZE), (family("multihead attention")[0], (3, 16, 16))):
        before = snapshot(model)
        _, low_rank = for_training(model, size)
        own = {tensor.data_ptr() for tensor in tensors_of(model).values()}
        assert factored(low_rank)
        assert not own & {tensor.data_ptr() for tensor in tensors_of(low_rank).values()}
        with torch.no_grad():
            for parameter in low_rank.parameters():
                parameter.add_(1)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert factored(model) == []


@pytest.mark.parametrize("way", ["trained", "shipped"])
@pytest.mark.parametrize(
    ("make", "size", "exclude"),
    [(lambda: disturbed(tiny_cnn()), SIZE, ["6"]), (lambda: family("swin")[0], (3, 20, 16), [])],
    ids=["cnn", "swin"],
)
def test_both_ways_apply_the_best_weights_of_their_rank(make, size, exclude, way):
    model = make()
    plan = make_plan(model, UniformRank(3), input_size=size, exclude=exclude, decomposer=Decomposer(wanted="matrix"))
    truncated, images = copy.deepcopy(model), torch.randn(2, *size)
    assert plan.factorized()
    with torch.no_grad():
        for name in plan.factorized():
            weight = truncated.get_submodule(name).weight
            U, sigma, Vt = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
            weight.copy_((U[:, :3] * sigma[:3] @ Vt[:3]).reshape(weight.shape))
        expected = truncated(images)
        if way == "shipped":
            low_rank = factorize(model, plan)
        else:
            low_rank = factorize_for_training(model, plan)
            assert factored(low_rank) == list(plan.factorized())
            assert relative_difference(low_rank(images), expected) < 1e-5
            assert fold_(low_rank) is low_rank
        assert relative_difference(low_rank(images), expected) < 1e-5
    assert factored(low_rank) == []
    assert low_rank_layers(low_rank) == list(plan.factorized())


def test_parameters_are_counted_as_they_are_shipped():
    model = tiny_cnn()
    plan, low_rank = for_training(model, SIZE)
    assert factored(low_rank) == list(plan.factorized()) == ["3", "6", "9"]
    expected = count_parameters(model) - plan.removed_parameters()
    assert count_shipped_parameters(low_rank) == expected
    assert count_parameters(fold_(low_rank)) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_in_every_form_training_starts_at_what_would_be_shipped_and_folds_into_it(name, scheme):
    model, _, size = family(name)
    decomposer = Decomposer(wanted=scheme)
    plan = make_plan(model, TrainingStart(0.5), input_size=size, decomposer=decomposer)
    assert plan.factorized()
    shipped = factorize(model, plan, decomposer=decomposer)
    low_rank, images = factorize_for_training(model, plan, decomposer=decomposer), torch.randn(2, *size)
    assert low_rank_layers(low_rank) == []
    assert list(trained_layers(low_rank)) == list(plan.factorized())
    with torch.no_grad():
        expected = shipped(images)
        assert relative_difference(low_rank(images), expected) < 1e-4
        assert count_shipped_parameters(low_rank) == count_parameters(shipped)
        assert relative_difference(fold_(low_rank)(images), expected) < 1e-4
    assert trained_layers(low_rank) == {}
    shapes = ({key: value.shape for key, value in one.state_dict().items()} for one in (low_rank, shipped))
    assert next(shapes) == next(shapes)
    for key, layer_plan in plan.factorized().items():
        assert low_rank.get_submodule(key).ranks == layer_plan.ranks


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept_on_the_way_of_training_too(training):
    _, low_rank = for_training(tiny_cnn().train(training), SIZE)
    assert all(module.training is training for module in low_rank.modules())
    assert all(module.training is training for module in fold_(low_rank).modules())


def test_a_network_that_reads_its_layers_weights_works_in_training_and_folded():
    model, x = reading_network(), torch.randn(2, 3, 6, 6)
    _, small = for_training(model, (3, 6, 6), Tolerance(0.01))
    assert factored(small) == ["conv", "inner"]
    assert relative_difference(small(x), model(x)) < 1e-5
    assert relative_difference(fold_(small)(x), model(x)) < 1e-5


def test_training_starts_in_the_metric_of_the_decomposer():
    model, images = tiny_cnn(), torch.randn(6, *SIZE) * torch.linspace(0, 2, 8)
    found = {one.name: one for one in find_layers(model, SIZE) if not one.reason}
    metrics = measure_metrics(copy.deepcopy(model), found, [images], images=6)
    _, plain = for_training(model, SIZE, TrainingStart(0.1, max_rank=3))
    _, calibrated = for_training(model, SIZE, TrainingStart(0.1, max_rank=3), Decomposer(metrics, wanted="matrix"))
    for name in ("3", "9"):
        weight = model.get_submodule(name).weight.detach().flatten(1).double()
        # The projection onto the leading eigenvectors of the outputs' second moment.
        leading = torch.linalg.eigh(metrics[name].output_gram[0]).eigenvectors[:, -3:]
        found_weight = calibrated.get_submodule(name).weight.flatten(1)
        assert relative_difference(found_weight, leading @ leading.T @ weight) < 1e-5
        U, sigma, Vt = torch.linalg.svd(weight, full_matrices=False)
        nearest = U[:, :3] * sigma[:3] @ Vt[:3]
        assert relative_difference(plain.get_submodule(name).weight.flatten(1), nearest) < 1e-5
        assert relative_difference(found_weight, nearest) > 1e-2
