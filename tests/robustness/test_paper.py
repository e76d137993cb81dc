"""The paper's attacks on a linear network behind a normalisation, where each step is known."""

import math

import pytest
import torch
from networks import TensorImages
from report_values import report_with
from torch import nn

from lrcompress.data import ImageSet
from lrcompress.errors import OptionError
from lrcompress.models import PixelModel, Preprocessing
from lrcompress.report import render_html, verdict
from lrcompress.report.upgrade import upgrade_evaluation
from lrcompress.robustness import ATTACKS, SUITES, AttackSettings, EvaluatedModel, evaluate_models
from lrcompress.robustness.iterated import run_stream
from lrcompress.robustness.paper import PAPER_EPS, PaperJitter, PaperL1Fgsm, PaperL2Fgsm, PaperMixup, mix_images

SIZE, CLASSES = (3, 6, 5), 4
MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)
NAMES = SUITES["paper"]
MADE = {
    "paper-l2fgsm": PaperL2Fgsm,
    "paper-l1fgsm": PaperL1Fgsm,
    "paper-jitter": PaperJitter,
    "paper-mixup": PaperMixup,
}


class Linear(nn.Module):
    """Logits that are linear in what it sees, each image by itself."""

    def __init__(self):
        super().__init__()
        weight = 0.1 * torch.randn(CLASSES, *SIZE, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.shown = 0

    def forward(self, z):
        self.shown += len(z)
        return torch.stack([(z * weight).flatten(1).sum(1) for weight in self.weight], 1)


def normalised(network=None, mean=MEAN, std=STD):
    return PixelModel(network or Linear(), Preprocessing(SIZE, mean, std, 1.0, "bilinear", "test")).eval()


def pictures(count=40, low=40, high=215):
    levels = torch.randint(low, high, (count, *SIZE), generator=torch.Generator().manual_seed(0))
    return levels / 255


def attack(model, one, images, *, batch_size=16, seeds=None):
    with torch.no_grad():
        logits = model(images)
    seeds = torch.arange(len(images)) if seeds is None else seeds
    return run_stream(model, one, images, logits.argmax(1), logits, seeds, batch_size=batch_size)


def entropy_gradient(model, images):
    """The gradient of the cross entropy by z of a linear network: Σ (p_k − y_k) W_k, in float64."""
    weight = model.network.weight.double()
    z = (images.double() - model.mean) / model.std
    logits = torch.einsum("nchw,kchw->nk", z, weight)
    wanted = nn.functional.one_hot(logits.argmax(1), CLASSES)
    return torch.einsum("nk,kchw->nchw", logits.softmax(1) - wanted, weight)


def column(values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def rounded(images):
    return ((255 * images.clamp(0, 1)).round() / 255).float()


def test_l2fgsm_moves_what_the_network_sees_along_the_gradient_by_eps_in_its_largest_entry():
    model, images, eps = normalised(), pictures(), 0.4
    moved = attack(model, PaperL2Fgsm(eps, model), images).moved
    gradient = entropy_gradient(model, images)
    step = eps * gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(moved, rounded(images + column(STD) * step), rtol=0, atol=1e-6)
    largest = ((moved - images) / column(STD)).abs().flatten(1).amax(1)
    assert float((largest - eps).abs().max()) < 0.5 / 255 / min(STD) + 1e-5


def test_l1fgsm_moves_pixels_by_eps_within_the_values_that_the_network_has_seen():
    model, images, eps = normalised(), pictures(), 0.101  # no level's half
    moved = attack(model, PaperL1Fgsm(eps, model), images).moved
    z = (images.double() - column(MEAN)) / column(STD)
    stepped = z + eps * entropy_gradient(model, images).sign() / column(STD)
    within = stepped.clamp(z.amin((1, 2, 3), keepdim=True), z.amax((1, 2, 3), keepdim=True))
    expected = rounded(within * column(STD) + column(MEAN))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
    assert (within != stepped).any()  # the bounds did matter
    assert ((moved - images).abs() > eps - 1 / 255).double().mean() > 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eps", [0.0, 0.013, 0.2, 0.7])
def test_every_result_is_a_picture_near_the_image(name, eps):
    model, images = normalised(), pictures(low=0, high=256)
    outcome = attack(model, MADE[name](eps, model), images)
    levels = 255 * outcome.moved
    assert float((levels - levels.round()).abs().max()) < 1e-4
    assert float(outcome.moved.min()) >= 0
    assert float(outcome.moved.max()) <= 1
    change = (outcome.moved - images).abs()
    assert float(change.max()) <= eps * (1 if name == "paper-l1fgsm" else max(STD)) + 1 / 255
    if name != "paper-l1fgsm":  # in each channel as it is normalised
        assert (change <= eps * column(STD) + 0.5 / 255 + 1e-6).all()
    assert (float(change.max()) > 0) == (eps > 0)


@pytest.mark.parametrize("name", NAMES)
def test_eps_in_pixels_is_that_of_the_channel_that_varies_most(name):
    expected = 1.0 if name == "paper-l1fgsm" else 0.3
    assert MADE[name].pixels_per_unit(normalised()) == pytest.approx(expected)
    assert MADE[name].pixels_per_unit(Linear()) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_normalisation_sees_pixels(name):
    network, images = Linear(), pictures()
    plain, behind = network, normalised(network, (0.0,) * 3, (1.0,) * 3)
    moved = [attack(model, MADE[name](0.05, model), images).moved for model in (plain, behind)]
    assert torch.equal(*moved)


@pytest.mark.parametrize("name", ["paper-l2fgsm", "paper-l1fgsm", "paper-jitter"])
def test_a_linear_network_breaks_at_a_large_eps_and_withstands_a_small_one(name):
    model, images = normalised(), pictures()
    assert attack(model, MADE[name](0.6, model), images).broken.float().mean() > 0.7
    assert attack(model, MADE[name](0.005, model), images).broken.float().mean() < 0.1


def test_mixup_breaks_a_linear_network_where_the_mix_image_is_of_another_class():
    model, images = normalised(), pictures()
    with torch.no_grad():
        own, mixed = (model(one).argmax(1) for one in (images, mix_images(images, torch.arange(40))))
    assert (own != mixed).sum() > 10
    broken = attack(model, PaperMixup(1.5, model), images).broken.float()
    assert broken[own != mixed].mean() > 0.6
    assert broken[own == mixed].mean() < 0.1  # it is pulled towards its own class
    assert attack(model, PaperMixup(0.005, model), images).broken.float().mean() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_outcome_depends_on_the_image_and_its_seed_alone(name):
    model, images, eps = normalised(), pictures(), 0.05
    whole = attack(model, MADE[name](eps, model), images, batch_size=40)
    small = attack(model, MADE[name](eps, model), images, batch_size=3)
    assert 0 < whole.broken.sum() < len(images)
    assert torch.equal(whole.moved, small.moved)
    some = torch.tensor([31, 4, 17])
    assert torch.equal(attack(model, MADE[name](eps, model), images[some], seeds=some).moved, whole.moved[some])
    torch.manual_seed(5)  # the global generator plays no part
    state = torch.get_rng_state()
    again = attack(model, MADE[name](eps, model), images)
    assert torch.equal(again.moved, whole.moved)
    assert torch.equal(torch.get_rng_state(), state)
    other = attack(model, MADE[name](eps, model), images, seeds=torch.arange(40) + 100)
    assert torch.equal(other.moved, whole.moved) == (name in ("paper-l2fgsm", "paper-l1fgsm"))


@pytest.mark.parametrize(("name", "looks"), [("paper-l2fgsm", 2), ("paper-jitter", 6), ("paper-mixup", 7)])
def test_only_the_end_counts_and_every_look_is_counted(name, looks):
    model, images = normalised(), pictures(10)
    one = MADE[name](0.6, model)
    model.network.shown = 0
    outcome = attack(model, one, images, batch_size=4)
    assert outcome.broken.any()
    assert model.network.shown - 10 == outcome.passes.forward == 10 * looks  # without those of `attack` itself


def state_of(one, model, images, moved=None):
    logits = model(images)
    state = one.begin(images, logits, torch.arange(len(images)))
    state |= {"images": images, "step": torch.zeros(len(images), dtype=torch.long)}
    return state if moved is None else state | {"moved": moved}


def test_the_loss_of_jitter_is_smaller_where_the_answer_is_wrong_and_the_perturbation_large():
    model, images = normalised(), pictures(6)
    one = PaperJitter(0.5, model)
    moved = images.clone()
    moved[:, 1, 2, 3] += 0.05  # z by a quarter, in the channel of 0.2
    logits = model(images)
    right, wrong = logits.argmax(1), (logits.argmax(1) + 1) % CLASSES
    clean, away = state_of(one, model, images), state_of(one, model, images, moved)
    assert torch.equal(one.loss(logits, right, clean), one.loss(logits, right, away))
    torch.testing.assert_close(one.loss(logits, wrong, away), one.loss(logits, wrong, clean) / 0.25)


def test_the_loss_of_jitter_is_that_of_the_scaled_probabilities_but_for_noise():
    model, images = normalised(), pictures(2000)
    one, logits = PaperJitter(0.5, model), model(pictures(1)).expand(2000, -1)
    scaled = [10 * float(value) / max(abs(float(other)) for other in logits[0]) for value in logits[0]]
    total = sum(math.exp(value) for value in scaled)
    for label in range(CLASSES):
        state, labels = state_of(one, model, images), torch.full((2000,), label)
        losses = [one.loss(logits, labels, state | {"step": torch.full((2000,), step)}) for step in (0, 1)]
        squares = [(math.exp(value) / total - (index == label)) ** 2 for index, value in enumerate(scaled)]
        # The noise adds its variance.
        assert float(losses[0].mean()) == pytest.approx(sum(squares) / CLASSES + 0.1**2, rel=0.05)
        assert losses[0].std() > 0
        assert not torch.equal(*losses)


def test_jitter_follows_the_size_of_the_perturbation_too():
    model, images = normalised(), pictures(1)
    one = PaperJitter(0.5, model)
    start = images.clone()
    start[:, 1, 2, 3] += 0.05
    gradients = {}
    for name, offset in (("right", 0), ("wrong", 1)):
        moved = start.clone().requires_grad_(True)
        logits = model(moved)
        labels = (logits.argmax(1) + offset) % CLASSES
        loss = one.loss(logits, labels, state_of(one, model, images) | {"moved": moved})
        (direct,) = torch.autograd.grad(loss.sum(), moved, retain_graph=True)
        detached = one.loss(logits, labels, state_of(one, model, images, start))
        (without,) = torch.autograd.grad(detached.sum(), moved)
        gradients[name] = direct - without
    assert not gradients["right"].any()
    pushed = gradients["wrong"].nonzero().tolist()
    assert pushed == [[0, 1, 2, 3]]
    assert float(gradients["wrong"][0, 1, 2, 3]) < 0  # back to the image


def test_the_gradient_of_the_loss_of_mixup_is_that_of_the_published_one():
    model, images = normalised(), pictures(5)
    one, labels = PaperMixup(0.5, model), torch.arange(5) % CLASSES
    with torch.no_grad():
        logits, mixed = model(images), model(mix_images(images, torch.arange(5)))
    assert (mixed < 0).any()
    gradients = []
    for theirs in (False, True):
        seen = logits.clone().requires_grad_(True)
        if theirs:
            terms = nn.KLDivLoss(reduction="none")(seen, mixed)
            loss = 1e-3 * nn.functional.cross_entropy(seen, labels, reduction="sum") - terms.mean(1).sum()
        else:
            loss = one.loss(seen, labels, state_of(one, model, images)).sum()
        gradients.append(torch.autograd.grad(loss, seen)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-2


def test_mixup_moves_along_the_sum_of_its_gradients_each_of_length_one_in_l1():
    model, images = normalised(), pictures(2)
    one = PaperMixup(100.0, model)  # far from ±ε, and ends of the range are far in its steps of 1 in z
    state, generator = state_of(one, model, images), torch.Generator().manual_seed(3)
    total = torch.zeros(images.shape, dtype=torch.float64)
    for _ in range(2):
        gradient = torch.randn(images.shape, generator=generator) * 1e-3
        seen = gradient.double() * column(STD)
        total = total + seen / seen.abs().sum((1, 2, 3), keepdim=True)
        before = state["moved"]
        state = state | one.advance(state, torch.zeros(2), gradient)
        step = total / total.abs().amax((1, 2, 3), keepdim=True)
        expected = rounded(before + column(STD) * step)
        assert float((state["moved"] - expected).abs().max()) < 1.01 / 255
        assert ((state["moved"] - expected).abs() < 1e-6).double().mean() > 0.98


def test_the_fault_that_is_described_is_one_of_torch_and_raw_logits():
    logits, mixed = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True), torch.tensor([[0.3, -1.0, 2.0]])
    with pytest.warns(UserWarning, match="batchmean"):
        loss = -nn.KLDivLoss()(logits, mixed)
    assert loss.isnan()
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], mixed / 3)


def test_mix_images_are_smooth_and_belong_to_their_seeds():
    images = torch.zeros(3, 3, 64, 48)
    first, again = mix_images(images, torch.arange(3)), mix_images(images[:1], torch.tensor([2]))
    assert torch.equal(first[2:], again)
    assert not torch.equal(first[0], first[1])
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert float(first.std()) > 0.15
    assert float((first[..., 1:] - first[..., :-1]).abs().max()) < 0.2  # cells are six wide


# As part of an evaluation


def evaluate(attacks, eps=(), *, images=30, roles=("compressed",), **settings):
    models = [EvaluatedModel(role, normalised(), "0") for role in roles]
    pixels = pictures(images)
    with torch.no_grad():
        data = ImageSet(TensorImages(pixels, models[0].model(pixels).argmax(1)), (), "noise")
    return evaluate_models(models, data, AttackSettings(attacks, eps=eps, **settings))


def test_they_are_rows_like_others_but_no_part_of_the_worst_case_and_of_the_checks():
    evaluation = evaluate(("noise", *NAMES, "pgd"), (0.01, 0.2), steps=2)
    (model,) = evaluation.models
    rows = {outcome.attack: [sum(bits) for bits in outcome.robust] for outcome in model.attacks}
    both = [model.outcome(name).robust for name in ("noise", "pgd")]
    expected = tuple(tuple(all(bits) for bits in zip(*level, strict=True)) for level in zip(*both, strict=True))
    assert model.outcome("worst").robust == model.worst_case().robust == expected
    assert all(rows[name][1] < rows[name][0] for name in NAMES)
    weaker = evaluate(("noise", *NAMES), (0.2,)).models[0]
    left = {name: sum(weaker.outcome(name).robust[0]) for name in NAMES}
    assert left["paper-l1fgsm"] < left["paper-jitter"] < sum(weaker.outcome("worst").robust[0])


def test_what_they_break_does_not_quiet_a_doubt_about_the_others():
    alone, beside = (evaluate(("pgd", *names), (0.03,), steps=1).findings for names in ((), NAMES))
    assert "doubled-steps" in [finding.check for finding in alone]
    assert beside == alone


def test_where_there_are_no_others_there_is_no_worst_case():
    evaluation = evaluate(NAMES, images=20, roles=("baseline", "compressed"))
    assert evaluation.settings["eps"] == list(PAPER_EPS)
    assert [outcome.attack for outcome in evaluation.models[0].attacks] == list(NAMES)
    assert evaluation.models[0].worst_case() is None
    values = upgrade_evaluation(evaluation.to_json()) | {"command": "lrcompress attack"}
    assert values["per_class"][0]["compressed"]["worst"] == []
    scales = values["settings"]["paper"]["pixels_per_unit"]
    assert list(scales) == list(NAMES)
    assert scales["paper-mixup"] == pytest.approx({"baseline": 0.3, "compressed": 0.3})
    assert scales["paper-l1fgsm"] == {"baseline": 1.0, "compressed": 1.0}
    page = render_html(report_with(values))
    assert "0.1 (pixels ≤ 7.65/255)" in page
    assert "not comparable with ε in pixels" in page
    assert not any("Worst case" in sentence for sentence in verdict(report_with(values)))


def test_at_a_radius_of_zero_rounding_is_no_error():
    # The images are no pictures: a lead of a millionth is lost when they become some.
    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1e4))

        def forward(self, x):
            lead = self.scale * (x.flatten(1).mean(1) - 100.2 / 255)
            return torch.stack([lead, -lead], 1)

    pixels = torch.full((4, *SIZE), 100.3 / 255)
    images = ImageSet(TensorImages(pixels, torch.zeros(4, dtype=torch.long)), (), "grey")
    settings = AttackSettings(("noise", "paper-l2fgsm"), eps=(0.0,))
    (model,) = evaluate_models([EvaluatedModel("compressed", Exact(), "0")], images, settings).models
    assert not any(model.outcome("paper-l2fgsm").robust[0])
    assert all(model.outcome("worst").robust[0])


def test_what_is_broken_is_not_attacked_at_larger_radii():
    passes = [evaluate(("paper-jitter",), eps).models[0].backward_passes for eps in ((0.6,), (0.6, 0.7))]
    broken = 30 - sum(evaluate(("paper-jitter",), (0.6,)).models[0].attacks[0].robust[0])
    assert broken > 20
    assert passes[0] >= 30 * 5
    assert passes[1] - passes[0] <= (30 - broken) * 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms_are_refused(name, norm):
    with pytest.raises(OptionError, match=f"{name} does not work in {norm}, but in linf") as refused:
        AttackSettings((name,), norm=norm)
    assert refused.value.hint == "--norm linf"


def test_every_attack_of_the_paper_is_in_the_table_and_in_its_suite():
    assert {name: kind.paper for name, kind in ATTACKS.items() if kind.paper is not None} == MADE
