import pytest
import torch
from networks import CONVOLUTIONS, LINEAR_LAYERS, random_matrix, relative_difference, snapshot, tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.errors import EvaluationError
from lrcompress.factorize import factorize, fold_
from lrcompress.linalg import damped_output_gram
from lrcompress.nn import dense_matrix
from lrcompress.plan import UniformRank, make_plan, output_grams
from lrcompress.plan.calibrate import DAMPING

SIZE = (3, 8, 8)
LAYERS = LINEAR_LAYERS | CONVOLUTIONS


def batches(count=3, *, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # A few strong directions, so that what the images say differs from what the weights say.
    patterns = torch.randn(2, *size, generator=generator)
    weights = torch.randn(count, 4, 2, generator=generator)
    noise = torch.randn(count, 4, *size, generator=generator)
    return list(torch.einsum("bnp,pchw->bnchw", weights, patterns) + 0.1 * noise)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_the_gram_matrix_is_that_of_the_outputs_without_bias(make):
    layer = make()
    model = nn.Sequential(layer)
    shape = (4, 2, 3, layer.in_features) if isinstance(layer, nn.Linear) else (4, layer.in_channels, 9, 9)
    xs = [torch.randn(shape) for _ in range(2)]
    rows = []
    with torch.no_grad():
        for x in xs:
            y = layer(x) - (0 if layer.bias is None else layer(torch.zeros_like(x)))
            rows.append((y if isinstance(layer, nn.Linear) else y.movedim(1, -1)).flatten(0, -2))
    y = torch.cat(rows).double()
    expected = damped_output_gram(y.T @ y, dense_matrix(layer), damping=DAMPING)
    assert relative_difference(output_grams(model, ["0"], xs)["0"], expected) < 1e-5


def test_grams_of_a_layer_that_is_called_twice_are_added():
    layer = nn.Linear(6, 6, bias=False)
    x = torch.randn(5, 1, 1, 6)
    y = layer(x)
    rows = torch.cat([y, layer(y)]).detach().double().flatten(0, -2)
    expected = damped_output_gram(rows.T @ rows, layer.weight, damping=DAMPING)
    assert relative_difference(output_grams(nn.Sequential(layer, layer), ["0"], [x])["0"], expected) < 1e-5


def error_of_outputs(model, low_rank, images):
    with torch.no_grad():
        return relative_difference(low_rank(images), model(images))


def test_at_equal_ranks_unseen_images_of_the_same_kind_change_less_than_by_a_plain_truncation():
    model = tiny_cnn()
    *seen, unseen = batches(9)
    grams = output_grams(model, ["3", "9"], seen)
    errors = []
    for metric in ({}, grams):
        plan = make_plan(model, UniformRank(4), input_size=SIZE, output_grams=metric)
        assert plan.factorized().keys() == {"3", "9"}
        errors.append(error_of_outputs(model, fold_(factorize(model, plan, output_grams=metric)), unseen))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("images", [torch.zeros(2, *SIZE), torch.randn(1, *SIZE)], ids=["black", "a single one"])
def test_images_that_say_little_do_no_harm(images):
    model = tiny_cnn(bias=False)
    grams = output_grams(model, ["3", "9"], [images])
    plan = make_plan(model, UniformRank(4), input_size=SIZE, output_grams=grams)
    low_rank = fold_(factorize(model, plan, output_grams=grams))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in low_rank.parameters())
    for layer in plan.factorized().values():
        assert 0 < layer.relative_error < 1


def test_calibrating_leaves_the_model_as_it_was():
    model = tiny_mlp(norm=True).train()
    before = snapshot(model)
    output_grams(model, ["1", "4"], batches(size=(3, 4, 4)))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_outputs_that_are_not_finite_are_refused_with_the_layers_name():
    model = tiny_mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    with pytest.raises(EvaluationError, match="outputs of `1` are not finite"):
        output_grams(model, ["1", "4"], batches(size=(3, 4, 4)))
    assert not any(module._forward_hooks for module in model.modules())


def test_damping_weighs_samples_against_weights():
    weight, gram = random_matrix(5, 8), random_matrix(5, 5, seed=1)
    gram = gram @ gram.T
    damped = damped_output_gram(gram, weight, damping=0.5)
    assert float(damped.trace()) == pytest.approx(1.5)
    assert relative_difference(damped - 0.5 * weight @ weight.T / (weight**2).sum(), gram / gram.trace()) < 1e-12
