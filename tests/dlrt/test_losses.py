import pytest
import torch
from networks import tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.dlrt import Adversary
from lrcompress.dlrt.losses import Objective, check_labels, distillation_loss
from lrcompress.errors import DataError


def images(count=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 4, 4, generator=generator), torch.arange(count) % 4


def objective(model, **changes):
    settings = {"teacher": None, "distill": 0.0, "temperature": 3.0, "label_smoothing": 0.0, "adversary": None}
    settings |= {"trades": 0.0, "bfloat16": False}
    return Objective(model, **settings | changes)


def probabilities(logits):
    return logits.double().exp() / logits.double().exp().sum(1, keepdim=True)


def divergence(p, q):
    """KL(p ‖ q), averaged over the images."""
    return float((p * (p / q).log()).sum(1).mean())


def test_the_distillation_loss_is_the_divergence_of_the_softened_distributions():
    logits, wanted, T = torch.randn(5, 4), torch.randn(5, 4), 3.0
    expected = T**2 * divergence(probabilities(wanted / T), probabilities(logits / T))
    assert float(distillation_loss(logits, wanted, temperature=T)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(wanted, wanted + 7.0, temperature=T)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_size_of_the_distillations_gradient_does_not_depend_on_the_temperature_much(temperature):
    wanted = 0.1 * torch.randn(5, 4)
    logits = torch.zeros(5, 4, requires_grad=True)
    distillation_loss(logits, wanted, temperature=temperature).backward()
    # For small logits the gradient is (z − v)/N, centred: Hinton et al., eq. 4.
    expected = (-(wanted - wanted.mean(1, keepdim=True)) / 4) / 5
    assert torch.allclose(logits.grad, expected, rtol=0.2, atol=3e-4)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
def test_labels_are_classes_or_shares_and_may_be_smoothed(soft, label_smoothing):
    model = tiny_mlp()
    pixels, labels = images()
    wanted = torch.eye(4)[labels]
    if soft:
        wanted = 0.7 * wanted + 0.3 * wanted.flip(0)
    smoothed = (1 - label_smoothing) * wanted + label_smoothing / 4
    expected = -(smoothed * probabilities(model(pixels).detach()).log()).sum(1).mean()
    loss = objective(model, label_smoothing=label_smoothing)(pixels, wanted if soft else labels, seed=0)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("distill", [0.0, 0.3, 1.0])
def test_distillation_has_its_weight_and_the_labels_the_rest(distill):
    model, teacher = tiny_mlp(), tiny_mlp(seed=1)
    pixels, labels = images()
    apart = [float(objective(model)(pixels, labels, seed=0).detach())]
    apart.append(float(distillation_loss(model(pixels), teacher(pixels), temperature=2.0).detach()))
    loss = objective(model, teacher=teacher, distill=distill, temperature=2.0)(pixels, labels, seed=0)
    assert float(loss.detach()) == pytest.approx((1 - distill) * apart[0] + distill * apart[1], rel=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_without_distillation_the_teacher_is_not_asked():
    class Asked(nn.Module):
        def forward(self, x):
            raise AssertionError("asked")

    pixels, labels = images()
    assert objective(tiny_mlp(), teacher=Asked(), distill=0.0)(pixels, labels, seed=0) > 0


def test_adversarial_training_takes_the_perturbed_images_and_the_teacher_the_clean_ones():
    model, teacher = tiny_mlp(), tiny_mlp(seed=1)
    pixels, labels = images()
    adversary = Adversary("pgd", 0.1, steps=3)
    perturbed = adversary.perturb(model, pixels, labels, seed=7)
    expected = 0.5 * float(objective(model)(perturbed, labels, seed=0).detach())
    expected += 0.5 * float(distillation_loss(model(perturbed), teacher(pixels), temperature=3.0).detach())
    loss = objective(model, teacher=teacher, distill=0.5, adversary=adversary)(pixels, labels, seed=7)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    clean = objective(model, teacher=teacher, distill=0.5)(pixels, labels, seed=7)
    assert float(loss.detach()) > float(clean.detach())


def test_trades_adds_the_divergence_from_the_clean_to_the_perturbed_distribution():
    model, trades = tiny_mlp(), 4.0
    pixels, labels = images()
    adversary = Adversary("pgd", 0.1, steps=3)
    clean = model(pixels).detach()
    perturbed = adversary.perturb(model, pixels, clean.softmax(1), seed=7)
    expected = float(objective(model)(pixels, labels, seed=0).detach())
    expected += trades * divergence(probabilities(clean), probabilities(model(perturbed).detach()))
    loss = objective(model, adversary=adversary, trades=trades)(pixels, labels, seed=7)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(loss.detach()) > expected / 2 > 0


def test_trades_is_differentiated_through_both_distributions():
    class Logits(nn.Module):
        """Answers with what it holds, plus what depends on the images but for their gradient."""

        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(torch.tensor([[0.5, -0.5, 0.0, 0.2]]))
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.values * (1 + self.scale * x.mean((1, 2, 3))[:, None])

    pixels, labels = images(2)
    adversary = Adversary("pgd", 0.2, steps=2)
    model, h = Logits(), 1e-3
    objective(model, adversary=adversary, trades=3.0)(pixels, labels, seed=0).backward()
    moved = adversary.perturb(model, pixels, model(pixels).detach().softmax(1), seed=0)

    def value(scale):
        other = Logits().double()
        other.scale.data.fill_(scale)
        clean, apart = other(pixels.double()).detach(), other(moved.double()).detach()
        kl = divergence(probabilities(clean), probabilities(apart))
        return float(-probabilities(clean).log()[torch.arange(2), labels].mean()) + 3.0 * kl

    assert float(model.scale.grad) == pytest.approx((value(1 + h) - value(1 - h)) / (2 * h), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("label", "named"), [(4, 4), (255, 255), (-1, -1)])
def test_labels_out_of_range_are_refused(label, named):
    _, labels = images()
    check_labels(labels, 4)
    labels[0] = label
    with pytest.raises(DataError, match=f"label {named}, the model 4 classes") as refused:
        check_labels(labels, 4)
    assert refused.value.hint
    check_labels(torch.full((2, 4), 0.25), 4)  # shares of classes


def test_of_several_answers_the_first_counts():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = tiny_mlp()

        def forward(self, x):
            return self.network(x), torch.zeros(len(x), 9)

    pixels, labels = images()
    one = objective(Several())(pixels, labels, seed=0)
    assert float(one.detach()) == float(objective(tiny_mlp())(pixels, labels, seed=0).detach())


def test_under_bfloat16_the_loss_is_float32_and_nearly_the_same():
    model = tiny_cnn()
    pixels, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 4
    losses = [objective(model, bfloat16=flag)(pixels, labels, seed=0).detach() for flag in (False, True)]
    assert losses[1].dtype == torch.float32
    assert losses[0] != losses[1]
    assert torch.allclose(*losses, rtol=1e-2)
