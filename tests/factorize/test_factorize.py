import dataclasses

import pytest
import timm
import torch
import torchvision
from networks import matrix_with_spectrum, relative_difference, snapshot, tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.factorize import factorize, fold_
from lrcompress.measure import count_parameters
from lrcompress.nn import FactoredLayer, LowRankConv2d, LowRankLinear, count_shipped_parameters
from lrcompress.plan import FullRank, Tolerance, make_plan


def vgg():
    """torchvision's vgg11_bn, with smaller fully connected layers."""
    model = torchvision.models.VGG(torchvision.models.vgg.make_layers([16, "M", 32, "M", 64, 64], batch_norm=True))
    model.classifier = nn.Sequential(nn.Linear(64 * 49, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    return model


ARCHITECTURES = {
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=10), 32),
    "torchvision vgg11_bn": (vgg, 32),
    "timm vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10), 32),
    "timm tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10), 32),
}


def everything(model, size):
    return make_plan(model, FullRank(), input_size=size, include_first=True, include_classifier=True)


@pytest.mark.parametrize(("make", "size"), ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_full_rank_factorisation_is_exact(make, size):
    model = make().eval()
    # Biases and statistics of a fresh network are zeros and ones, which would hide that one of them was lost.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    plan = everything(model, (3, size, size))
    images = torch.randn(2, 3, size, size)
    factored = factorize(model, plan)
    with torch.no_grad():
        expected = model(images)
        assert relative_difference(factored(images), expected) < 1e-4
        shipped = fold_(factored)
        assert relative_difference(shipped(images), expected) < 1e-4
    replaced = [name for name, module in shipped.named_modules() if isinstance(module, (LowRankLinear, LowRankConv2d))]
    assert replaced == list(plan.factorized())
    assert len(replaced) >= 4


@pytest.mark.parametrize("bias", [True, False])
def test_first_convolution_and_bias_free_layers_keep_exactly_their_biases(bias):
    model = tiny_cnn(bias=bias)
    shipped = fold_(factorize(model, everything(model, (3, 8, 8))))
    images = torch.randn(2, 3, 8, 8)
    assert relative_difference(shipped(images), model(images)) < 1e-5
    for name in ("0", "3", "9"):
        assert (shipped.get_submodule(name).expand.bias is not None) is bias


@pytest.mark.parametrize("tol", [0.02, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_layer_is_within_the_tolerance_and_one_rank_less_would_not_be(tol, dtype):
    model = tiny_mlp().to(dtype)
    with torch.no_grad():  # a decaying spectrum, so that low ranks are possible
        for layer in (model[1], model[4]):
            U, sigma, Vt = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(U @ torch.diag(sigma * 0.7 ** torch.arange(len(sigma))) @ Vt)
    plan = make_plan(model, Tolerance(tol), input_size=(3, 4, 4), include_first=True)
    shipped = fold_(factorize(model, plan))
    assert list(plan.factorized()) == ["1", "4"]
    for name, layer_plan in plan.factorized().items():
        weight = model.get_submodule(name).weight.detach().double()
        module = shipped.get_submodule(name)
        applied = (module.expand.weight.double() @ module.reduce.weight.double()).detach()
        sigma = torch.linalg.svdvals(weight)
        error = float((weight - applied).norm() / weight.norm())
        assert error <= tol
        assert error == pytest.approx(layer_plan.relative_error, rel=1e-4)
        assert sigma[layer_plan.rank - 1 :].norm() > tol * weight.norm()


def test_the_original_is_not_changed_and_shares_no_tensor():
    model = tiny_cnn()
    before = snapshot(model)
    low_rank = factorize(model, everything(model, (3, 8, 8)))
    with torch.no_grad():
        for parameter in low_rank.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(module, FactoredLayer) for module in model.modules())


def test_only_planned_layers_are_replaced_and_all_parameters_are_counted():
    model = tiny_cnn()
    plan = make_plan(model, FullRank(), input_size=(3, 8, 8))
    low_rank = factorize(model, plan)
    assert [name for name, module in low_rank.named_modules() if isinstance(module, FactoredLayer)] == ["3", "9"]
    convolution, linear = 12 * (12 + 72) - 12 * 72, 12 * (16 + 12) - 16 * 12  # two factors for one weight
    expected = count_parameters(model) + convolution + linear
    assert count_shipped_parameters(low_rank) == expected
    assert count_parameters(fold_(low_rank)) == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_kept(training):
    model = tiny_cnn()
    plan = everything(model, (3, 8, 8))
    low_rank = factorize(model.train(training), plan)
    assert all(module.training is training for module in low_rank.modules())
    assert all(module.training is training for module in fold_(low_rank).modules())


@pytest.mark.parametrize("change", [{"name": "4.missing"}, {"name": "3"}, {"dense_shape": (24, 41)}])
def test_a_plan_for_another_network_is_refused(change):
    model = tiny_mlp()
    plan = make_plan(model, FullRank(), input_size=(3, 4, 4))
    (layer,) = plan.factorized().values()
    other = dataclasses.replace(plan, layers=(dataclasses.replace(layer, **change),))
    with pytest.raises(OptionError) as refused:
        factorize(model, other)
    assert f"`{change.get('name', '4')}`" in refused.value.message
    assert refused.value.hint


def test_factorising_twice_gives_the_same_bits():
    model = tiny_cnn()
    plan = everything(model, (3, 8, 8))
    first, second = (factorize(model, plan).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


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


def test_a_network_that_reads_its_layers_weights_works_factorised_and_folded():
    torch.manual_seed(0)
    model = ReadsWeights().eval()
    with torch.no_grad():
        model.conv.weight.copy_(matrix_with_spectrum([3, 2], 8, 72).reshape(8, 8, 3, 3))
        model.inner.weight.copy_(matrix_with_spectrum([3, 2], 12, 8))
    x = torch.randn(2, 3, 6, 6)
    small = factorize(model, make_plan(model, Tolerance(0.01), input_size=(3, 6, 6)))
    assert {name for name, module in small.named_modules() if isinstance(module, FactoredLayer)} == {"conv", "inner"}
    assert relative_difference(small(x), model(x)) < 1e-5
    assert relative_difference(fold_(small)(x), model(x)) < 1e-5
