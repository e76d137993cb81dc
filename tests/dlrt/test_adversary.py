import pytest
import torch
from linear_classifiers import SHAPE, Linear, images_at
from networks import snapshot, tiny_cnn
from torch import nn

from lrcompress.dlrt import Adversary
from lrcompress.measure import measure_accuracy

KINDS = ["fgsm-rs", "pgd"]
EPS = {"linf": 0.05, "l2": 0.3}


def margins(model, pixels, labels):
    """Of the label over the other class."""
    with torch.no_grad():
        logits = model(pixels)
    return logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]


def batch(model, margin=0.5, count=6):
    images = images_at(model, [margin] * count)
    return images.dataset.pixels, images.dataset.labels


def sizes(delta, norm):
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("kind", KINDS)
def test_perturbed_images_are_in_the_ball_and_in_the_range_of_pixels(kind, norm):
    model = tiny_cnn()
    pixels = torch.rand(16, 3, 8, 8).round(decimals=1)  # black and white among them
    perturbed = Adversary(kind, EPS[norm], norm).perturb(model, pixels, torch.arange(16) % 4, seed=0)
    assert perturbed.shape == pixels.shape
    assert float(perturbed.min()) >= 0
    assert float(perturbed.max()) <= 1
    assert float(sizes(perturbed - pixels, norm).max()) <= EPS[norm] * (1 + 1e-5)
    assert not perturbed.requires_grad


@pytest.mark.parametrize("norm", EPS)
def test_several_steps_reach_the_optimum_of_a_linear_classifier(norm):
    model = Linear()
    pixels, labels = batch(model)
    w = model.difference
    # The margin falls by ε‖w‖ in the dual norm, and by no more.
    dual = float(w.abs().sum() if norm == "linf" else w.norm())
    perturbed = Adversary("pgd", EPS[norm], norm, steps=10).perturb(model, pixels, labels, seed=0)
    expected = margins(model, pixels, labels) - EPS[norm] * dual
    assert torch.allclose(margins(model, perturbed, labels), expected, rtol=3e-2)


@pytest.mark.parametrize("norm", EPS)
def test_one_step_lowers_the_margin_by_most_of_what_is_possible(norm):
    model = Linear()
    pixels, labels = batch(model)
    dual = float(model.difference.abs().sum() if norm == "linf" else model.difference.norm())
    perturbed = Adversary("fgsm-rs", EPS[norm], norm).perturb(model, pixels, labels, seed=0)
    lost = (margins(model, pixels, labels) - margins(model, perturbed, labels)) / (EPS[norm] * dual)
    assert float(lost.min()) > 0.6
    assert float(lost.max()) <= 1 + 1e-4


def test_one_step_starts_at_a_random_place_and_ends_where_that_shows():
    model = Linear()
    pixels, labels = batch(model)
    adversary = Adversary("fgsm-rs", 0.05)
    one, again, other = (adversary.perturb(model, pixels, labels, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # 1.25 ε from a uniform start: beyond the ball with probability 5/8, where it ends at its edge.
    at_edge = ((one - pixels).abs() > 0.05 * (1 - 1e-4)).float().mean()
    assert 0.4 < float(at_edge) < 0.85


@pytest.mark.parametrize(("share", "count"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.01, 1)])
def test_a_share_of_the_batch_is_perturbed_and_the_rest_is_not(share, count):
    model = Linear()
    pixels, labels = batch(model, count=8)
    perturbed = Adversary("pgd", 0.05, share=share).perturb(model, pixels, labels, seed=0)
    changed = (perturbed != pixels).flatten(1).any(1)
    assert changed.tolist() == [True] * count + [False] * (8 - count)


def test_distributions_may_take_the_place_of_labels():
    model = Linear()
    pixels, labels = batch(model)
    adversary = Adversary("pgd", 0.05)
    hard = adversary.perturb(model, pixels, labels, seed=0)
    assert torch.allclose(hard, adversary.perturb(model, pixels, torch.eye(2)[labels], seed=0), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_it_was_and_no_gradient_with_it(kind):
    model = tiny_cnn().train()
    model[2] = nn.Dropout(0.5)
    model[1].eval()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    pixels, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    torch.set_rng_state(state)
    adversary = Adversary(kind, 0.05)
    one = adversary.perturb(model, pixels, labels, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, adversary.perturb(model.eval(), pixels, labels, seed=0))  # it answers without dropout
    model.train()
    model[1].eval()
    adversary.perturb(model, pixels, labels, seed=0)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_works_where_gradients_are_switched_off():
    model = Linear()
    pixels, labels = batch(model)
    with torch.no_grad():
        perturbed = Adversary("pgd", 0.05).perturb(model, pixels, labels, seed=0)
    assert not torch.equal(perturbed, pixels)


def test_under_bfloat16_images_stay_float32():
    perturbed = Adversary("pgd", 0.05, bfloat16=True).perturb(
        tiny_cnn(), torch.rand(8, 3, 8, 8), torch.arange(8) % 4, seed=0
    )
    assert perturbed.dtype == torch.float32
    assert torch.isfinite(perturbed).all()


def test_the_accuracy_counts_the_images_whose_margin_is_out_of_reach():
    model = Linear()
    reach = 0.02 * float(model.difference.abs().sum())
    images = images_at(model, [-0.5 * reach, *[0.5 * reach] * 5, *[1.5 * reach] * 4])
    adversary = Adversary("pgd", 0.02, steps=10, share=0.1)  # all are perturbed, whatever the share
    assert measure_accuracy(model, images) == 0.9
    assert adversary.accuracy(model, images, seed=0) == pytest.approx(0.4)
    assert images.dataset.pixels.shape[1:] == SHAPE
