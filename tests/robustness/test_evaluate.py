import numpy as np
import pytest
import torch
from linear_classifiers import Linear, images_at
from networks import TensorImages, pattern_images, tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.data import ImageSet
from lrcompress.errors import DataError, EvaluationError
from lrcompress.measure import predict_correct
from lrcompress.robustness import AttackSettings, EvaluatedModel, evaluate_models

RATIOS = [-0.5, 0.5, 0.8, 1.2, 1.8, -1.5, 0.9, 1.1, 1.6, 2.5]
EPS = (0.04, 0.08)


def evaluate(model, images, **settings):
    return evaluate_models([EvaluatedModel("compressed", model, "0")], images, AttackSettings(**settings)).models[0]


def dual_norm(model, norm):
    return float(model.difference.abs().sum() if norm == "linf" else model.difference.norm())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("batch_size", [3, 100])
def test_a_linear_classifier_is_robust_where_its_margin_exceeds_eps_times_the_dual_norm(norm, attack, batch_size):
    model = Linear()
    eps = EPS if norm == "linf" else (0.3, 0.6)
    margins = [ratio * eps[0] * dual_norm(model, norm) for ratio in RATIOS]
    found = evaluate(
        model, images_at(model, margins), attacks=(attack,), norm=norm, eps=eps, steps=40, batch_size=batch_size
    )
    assert list(found.clean) == [ratio > 0 for ratio in RATIOS]
    assert [list(row) for row in found.outcome(attack).robust] == [
        [ratio > 1 for ratio in RATIOS],
        [ratio > 2 for ratio in RATIOS],
    ]


def test_noise_of_the_same_size_is_weaker():
    model = Linear()
    margins = [ratio * EPS[0] * dual_norm(model, "linf") for ratio in RATIOS]
    found = evaluate(model, images_at(model, margins), attacks=("noise", "pgd"), eps=EPS[:1])
    # Noise moves the margin by about ε‖w‖₂/√3, a twelfth of ε‖w‖₁ for 48 pixels.
    assert list(found.outcome("noise").robust[0]) == [ratio > 0 for ratio in RATIOS]
    assert sum(found.outcome("pgd").robust[0]) < sum(found.outcome("noise").robust[0])


@pytest.mark.parametrize("attack", ["noise", "fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_radius_of_zero_changes_nothing(attack, norm):
    model, images = tiny_cnn(), pattern_images(30, size=8)
    found = evaluate(model, images, attacks=(attack,), norm=norm, eps=(0.0,))
    assert found.outcome(attack).robust[0] == found.clean == tuple(predict_correct(model, images).tolist())
    assert 0 < sum(found.clean) < 30


class Ripples(nn.Module):
    """Right where a pixel has moved by 0 or 0.2, wrong where it has moved by 0.1."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        wave = torch.cos((images.flatten(1)[:, 0] - 0.5) * 10 * torch.pi - 0.3) * self.scale
        return torch.stack([wave, -wave], 1)


def test_what_succeeds_within_a_ball_succeeds_within_every_larger_one():
    images = ImageSet(TensorImages(torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, dtype=torch.long)), (), "grey")
    robust = {
        eps: evaluate(Ripples(), images, attacks=("fgsm",), eps=eps).outcome("fgsm").robust
        for eps in [(0.2,), (0.1, 0.2)]
    }
    assert robust[(0.2,)] == ((True, True),)  # alone, the larger step jumps over the hole
    assert robust[(0.1, 0.2)] == ((False, False), (False, False))


def test_the_worst_case_is_taken_image_by_image():
    model = tiny_mlp()
    images = own_labels(model, 40)
    found = evaluate(model, images, attacks=("noise", "fgsm", "pgd"), eps=(0.02, 0.05), steps=5)
    for index in range(2):
        rows = [found.outcome(name).robust[index] for name in ("noise", "fgsm", "pgd")]
        assert found.outcome("worst").robust[index] == tuple(all(bits) for bits in zip(*rows, strict=True))
    assert found.attacks[-1].attack == "worst"


def own_labels(model, count):
    """Images of noise, labelled as the model sees them, so that attacks decide."""
    pixels = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return ImageSet(TensorImages(pixels, model(pixels).argmax(1)), (), "noise")


def test_images_that_are_broken_are_not_attacked_again():
    model = Linear()
    margins = [ratio * EPS[0] * dual_norm(model, "linf") for ratio in RATIOS]
    attacked = []

    def count(_, inputs):
        if torch.is_grad_enabled():
            attacked.append(len(inputs[0]))

    model.register_forward_pre_hook(count)
    evaluate(model, images_at(model, margins), attacks=("fgsm",), eps=EPS)
    # Right at first: 8 images; robust at the first radius: 5.
    assert set(attacked) == {8, 5}


def test_the_same_model_in_both_roles_gives_the_same_bits():
    model = tiny_mlp()
    images = own_labels(model, 40)
    models = [EvaluatedModel(role, model, "0") for role in ("baseline", "compressed")]
    settings = AttackSettings(attacks=("noise", "pgd"), eps=(0.01, 0.03), steps=4, restarts=2, batch_size=16)
    one, other = evaluate_models(models, images, settings).models
    assert (one.clean, one.attacks) == (other.clean, other.attacks)
    assert 0 < sum(one.outcome("worst").robust[0]) < 40


def test_the_seed_decides():
    model = tiny_mlp()
    images = own_labels(model, 60)
    bits = [
        evaluate(model, images, attacks=("noise",), eps=(0.3,), seed=seed).outcome("noise").robust for seed in (1, 1, 2)
    ]
    assert bits[0] == bits[1] != bits[2]


def test_restarts_only_break_more():
    model = tiny_mlp()
    images = own_labels(model, 60)
    counts = [
        sum(evaluate(model, images, attacks=("noise",), eps=(0.3,), restarts=n).outcome("noise").robust[0])
        for n in (1, 8)
    ]
    assert counts[1] < counts[0]


def test_modes_gradients_weights_and_generators_are_as_before():
    model = tiny_cnn().train()
    model[0].weight.requires_grad_(False)
    model[1].eval()  # a frozen batch norm
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)  # the global generator is what must not move
    generators = torch.get_rng_state(), np.random.get_state()[1].copy()
    evaluate(model, pattern_images(12, size=8), attacks=("noise", "fgsm", "pgd"), eps=(0.1,), steps=2)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.array_equal(np.random.get_state()[1], generators[1])
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_modes_are_restored_after_an_error_too():
    model = tiny_cnn().train()
    with torch.no_grad():
        model[11].bias.fill_(float("nan"))
    with pytest.raises(EvaluationError):
        evaluate(model, pattern_images(12, size=8))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress_counts_every_image_of_every_attack_once():
    seen = []
    model = EvaluatedModel("baseline", tiny_cnn(), "0")
    settings = AttackSettings(attacks=("noise", "fgsm"), eps=(0.1,), batch_size=5)
    evaluate_models([model], pattern_images(12, size=8), settings, on_progress=lambda *args: seen.append(args))
    counts = [done for _, done, _ in seen]
    assert counts == sorted(counts)
    assert {5, 12, 24} & set(counts) >= {12, 24}
    assert {total for _, _, total in seen} == {24}
    assert all(text.startswith("baseline") for text, _, _ in seen)


# Evaluations that would be void


class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.network, self.answer = tiny_cnn(), answer

    def forward(self, images):
        return self.answer(self.network(images))


VOID = {
    "NaN": (lambda logits: logits * float("nan"), "not finite"),
    "infinite": (lambda logits: logits / 0, "not finite"),
    "probabilities": (lambda logits: logits.softmax(1), "returns probabilities"),
    "random": (lambda logits: logits + torch.rand_like(logits), "differently"),
}


@pytest.mark.parametrize("attacks", [(), ("fgsm",)])
@pytest.mark.parametrize(("answer", "message"), VOID.values(), ids=VOID.keys())
def test_a_void_evaluation_is_refused(answer, message, attacks):
    with pytest.raises(EvaluationError, match=f"compressed model.* {message}") as refused:
        evaluate(Wrong(answer), pattern_images(12, size=8), attacks=attacks)
    assert refused.value.hint


class OnlyInTheSecondBatch(nn.Module):
    """Answers NaN to white images."""

    def __init__(self):
        super().__init__()
        self.network = tiny_cnn()

    def forward(self, images):
        white = (images.flatten(1).amin(1) == 1)[:, None]
        return self.network(images).masked_fill(white, float("nan"))


def test_one_image_with_infinite_logits_is_enough():
    pixels = torch.rand(30, 3, 8, 8)
    pixels[25] = 1
    images = ImageSet(TensorImages(pixels, torch.zeros(30, dtype=torch.long)), (), "one is white")
    with pytest.raises(EvaluationError, match="not finite"):
        evaluate(OnlyInTheSecondBatch(), images)


@pytest.mark.parametrize(("place", "label"), [(0, 4), (25, 4), (25, -1)])
@pytest.mark.parametrize("attacks", [(), ("fgsm",)])
def test_a_label_that_the_model_does_not_have_is_refused(place, label, attacks):
    images = pattern_images(30, size=8)
    images.dataset.labels[place] = label
    with pytest.raises(DataError, match=f"label {label}, the model 4 classes") as refused:
        evaluate(tiny_cnn(), images, attacks=attacks)
    assert refused.value.hint
