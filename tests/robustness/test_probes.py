"""One network for each thing that makes figures void or doubtful, and ordinary ones that give no cause for doubt."""

import copy
import json

import pytest
import torch
from networks import TensorImages, pattern_images, tiny_cnn, tiny_mlp
from torch import nn

from lrcompress.data import ImageSet
from lrcompress.errors import EvaluationError
from lrcompress.robustness import AttackSettings, EvaluatedModel, evaluate_models
from lrcompress.robustness.blocks import Block, KnownBlock
from lrcompress.robustness.iterated import Passes
from lrcompress.robustness.probes import check_radius_of_zero, probe_attack

COUNT = 320


def evaluate(model, images, **settings):
    settings = {"attacks": ("noise", "fgsm", "pgd"), "steps": 10} | settings
    return evaluate_models([EvaluatedModel("compressed", model, "0")], images, AttackSettings(**settings))


def checks(evaluation):
    return [(finding.severity, finding.check) for finding in evaluation.findings]


def own_labels(model, count=COUNT, size=4):
    """Images of noise, labelled as the model sees them, so that attacks decide."""
    pixels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return ImageSet(TensorImages(pixels, model.eval()(pixels).argmax(1)), (), "noise")


class Behind(nn.Module):
    """A network whose answer goes through a function."""

    def __init__(self, network, answer):
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, images):
        return self.answer(self.network(images))


class AcrossTheBatch(nn.Module):
    """Batch norm without running statistics: eval mode changes nothing."""

    def __init__(self):
        super().__init__()
        self.norm, self.network = nn.BatchNorm2d(3, track_running_stats=False), tiny_mlp()

    def forward(self, images):
        return self.network(self.norm(images))


def test_answers_that_depend_on_the_batch_are_refused():
    with pytest.raises(EvaluationError, match="depends on the others in its batch") as refused:
        evaluate(AcrossTheBatch(), pattern_images(40))
    assert "running statistics" in refused.value.hint


def test_a_radius_of_zero_that_breaks_images_is_refused():
    logits, labels = torch.tensor([[3.0, 1.0], [2.0, 2.0 - 1e-6], [0.0, 4.0]]), torch.tensor([0, 0, 1])
    known = KnownBlock(Block(0, 0, torch.zeros(3, 1, 1, 1), labels), logits, logits.argmax(1) == labels)
    check_radius_of_zero(known, "compressed", torch.tensor([True, False, True]))  # a draw, which rounding decides
    with pytest.raises(EvaluationError, match="at ε = 0 the compressed model loses 1 images"):
        check_radius_of_zero(known, "compressed", torch.tensor([False, True, True]))


def test_rounded_logits_leave_no_gradient_to_follow():
    network = tiny_mlp()
    model = Behind(network, lambda logits: (8 * logits).round() / 8)
    found = evaluate(model, own_labels(model), eps=(0.02,))
    assert ("unreliable", "zero-gradients") in checks(found)
    # No step leads to another class: the distance is infinite, and JSON has no infinity.
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["gradients"]["compressed"]["median_margin"] is None


def test_saturated_logits_leave_no_gradient_of_the_cross_entropy_but_one_of_the_ratio():
    network = tiny_mlp()
    with torch.no_grad():
        network[-1].weight.mul_(1e5)
        network[-1].bias.mul_(1e5)
    images = own_labels(network)
    found = evaluate(network, images, eps=(0.05,))
    assert ("unreliable", "zero-gradients") in checks(found)
    ratio = evaluate(network, images, eps=(0.05,), attacks=("pgd", "apgd-dlr")).models[0]
    assert sum(ratio.outcome("apgd-dlr").robust[0]) < sum(ratio.outcome("pgd").robust[0])


class Blocked(torch.autograd.Function):
    """Passes images on, and other gradients than there are."""

    @staticmethod
    def forward(ctx, images, change):
        ctx.change = change
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


def by_chance(gradient):
    return torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))


def backwards(gradient):
    return -gradient


class Misleading(nn.Module):
    """A network whose gradients lead nowhere."""

    def __init__(self, network, change=by_chance):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, images):
        return self.network(Blocked.apply(images, self.change))


def test_gradients_that_mislead_are_found_by_what_was_made_against_the_other_model():
    network = tiny_mlp()
    images = own_labels(network)
    models = [EvaluatedModel("baseline", network, "0"), EvaluatedModel("compressed", Misleading(network), "1")]
    evaluation = evaluate_models(models, images, AttackSettings(attacks=("noise", "pgd"), eps=(0.05, 0.1), steps=10))
    doubts = {(finding.check, finding.model) for finding in evaluation.findings}
    assert ("transfer-beats-white-box", "compressed") in doubts
    assert ("transfer-beats-white-box", "baseline") not in doubts
    shares = evaluation.transfer.accuracy
    assert shares["baseline→compressed"] == shares["baseline→baseline"] < shares["compressed→compressed"]


def test_square_finds_what_gradients_that_mislead_do_not():
    model = Misleading(tiny_mlp())
    found = evaluate(model, own_labels(model), eps=(0.1,), attacks=("pgd", "square"), queries=150)
    assert ("unreliable", "weaker-beats-stronger") in checks(found)


class Barrier(nn.Module):
    """Right, but for a narrow valley that long steps jump over: PGD finds it with many steps only."""

    def __init__(self, place):
        super().__init__()
        self.place = nn.Parameter(torch.tensor(place))

    def forward(self, images):
        moved = (images.flatten(1).mean(1) - 0.5).abs()
        lead = (moved - self.place).abs() - 0.004 + 0 * images.flatten(1).sum(1)
        return torch.stack([lead, -lead], 1)


def grey(count=200):
    return ImageSet(TensorImages(torch.full((count, 1, 2, 2), 0.5), torch.zeros(count, dtype=torch.long)), (), "grey")


def known_block(model, images):
    pixels, labels = images.dataset.pixels, images.dataset.labels
    with torch.no_grad():
        logits = model(pixels)
    return KnownBlock(Block(0, 0, pixels, labels), logits, logits.argmax(1) == labels)


def test_more_steps_that_break_more_are_told():
    model = tiny_mlp()
    known = known_block(model, own_labels(model, 120))
    standing = torch.ones(1, 120, dtype=torch.bool)  # as if the attack had done nothing
    settings = AttackSettings(attacks=("pgd",), eps=(0.1,), steps=3)
    passes = Passes()
    (found,) = probe_attack(model, "compressed", known, standing, settings, passes)
    assert (found.severity, found.check, found.model) == ("unreliable", "doubled-steps", "compressed")
    assert "6 steps of PGD break" in found.message
    assert passes.backward > 0
    # What really withstands PGD of many steps withstands twice as many.
    evaluation = evaluate(model, own_labels(model, 120), attacks=("pgd",), eps=(0.1,), steps=40)
    standing = torch.tensor(evaluation.models[0].outcome("worst").robust)
    assert (
        probe_attack(model, "compressed", known, standing, AttackSettings(("pgd",), eps=(0.1,), steps=40), passes) == []
    )


@pytest.mark.parametrize("seed", range(3))
def test_ordinary_networks_in_l1_raise_no_doubt_of_pgd_that_is_weak_there(seed):
    model, images = trained(seed)
    assert checks(evaluate(model, images, attacks=("noise", "fgsm", "pgd", "apgd-ce"), norm="l1", steps=20)) == []


def test_a_larger_radius_that_breaks_less_is_told():
    model = Barrier(0.05)
    images = grey()
    known = known_block(model, images)
    standing = torch.zeros(2, 200, dtype=torch.bool)  # the smaller radius breaks all
    settings = AttackSettings(attacks=("pgd",), eps=(0.05, 0.5), steps=1)
    found, blind = probe_attack(model, "compressed", known, standing, settings, Passes())
    assert (found.severity, found.check) == ("unreliable", "not-monotone")
    assert "at ε = 0.5 PGD leaves" in found.message
    # A long step goes over the valley.
    assert (blind.severity, blind.check) == ("unreliable", "large-radius")
    assert "withstands PGD at ε = 0.5 in ℓ∞, where nothing is left of an image, on 12" in blind.message


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_that_withstand_what_leaves_nothing_of_them_are_told_whatever_the_radii(norm):
    model = Misleading(tiny_mlp(), backwards)
    images = own_labels(model)
    assert ("unreliable", "large-radius") in checks(evaluate(model, images, attacks=("pgd",), eps=(0.01,), norm=norm))
    sound = checks(evaluate(tiny_mlp(), images, attacks=("pgd",), eps=(0.01,), norm=norm))
    assert ("unreliable", "large-radius") not in sound


class OtherwiseWithGradients(nn.Module):
    """A network that hides itself from attacks: while gradients are computed it gives other answers."""

    def __init__(self):
        super().__init__()
        self.network = tiny_mlp()

    def forward(self, images):
        logits = self.network(images)
        return logits.roll(1, 1) if torch.is_grad_enabled() else logits


def test_a_network_that_answers_otherwise_while_gradients_are_computed_is_refused():
    with pytest.raises(EvaluationError, match="answers differently while gradients are computed"):
        evaluate(OtherwiseWithGradients(), pattern_images(40))


def test_attacks_of_foolbox_alone_are_probed_too():
    model = tiny_mlp()
    weak = evaluate(model, own_labels(model), attacks=("LinfPGD:steps=1,rel_stepsize=0.01",), eps=(0.05,), steps=10)
    (found,) = [one for one in weak.findings if one.check == "doubled-steps"]
    assert "20 steps of PGD break" in found.message
    assert weak.models[0].forward_passes > COUNT
    assert weak.models[0].backward_passes >= COUNT / 2


def trained(seed):
    """A network that has learnt patterns, and images of them that it has not seen."""
    model, images = tiny_cnn(seed=seed).train(), pattern_images(2 * COUNT, size=8, noise=0.3).dataset
    pixels, labels = images.pixels[:COUNT], images.labels[:COUNT]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
    return model.eval(), ImageSet(TensorImages(images.pixels[COUNT:], images.labels[COUNT:]), (), "patterns")


def random_network(seed):
    model = tiny_mlp(seed=seed)
    return model, own_labels(model)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [random_network, trained])
def test_ordinary_networks_raise_no_doubt(make, seed):
    model, images = make(seed)
    compressed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in compressed.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    models = [EvaluatedModel("baseline", model, "0"), EvaluatedModel("compressed", compressed, "1")]
    settings = AttackSettings(("noise", "fgsm", "pgd", "apgd-ce", "apgd-dlr"), steps=20)
    evaluation = evaluate_models(models, images, settings)
    assert checks(evaluation) == []
    worst = evaluation.models[0].outcome("worst").robust
    assert any(0 < sum(row) < COUNT for row in worst)
