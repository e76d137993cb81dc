import copy
import itertools
import math

import pytest
import torch
from networks import TensorImages, pattern_images, relative_difference, snapshot, tiny_cnn, tiny_mlp
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lrcompress.data import ImageSet, split_held_out
from lrcompress.dlrt import DlrtOptions, fine_tune_
from lrcompress.dlrt.training import distillation_loss
from lrcompress.errors import DataError, TrainingError
from lrcompress.factorize import factorize_for_training
from lrcompress.nn import factored_layers
from lrcompress.plan import TrainingStart, make_plan

USEFUL = {"1": 21, "4": 14}  # 48×40 and 24×40: 21·88 < 1920 and 14·64 < 960, and one more is not

LONG = {"epochs": 10, "coefficient_steps": 5, "lr": 3e-2, "max_rank": None}


def low_rank_mlp(*, tol=0.3, max_rank=6, norm=False):
    model = tiny_mlp(norm=norm)
    return factorize_for_training(
        model, make_plan(model, TrainingStart(tol, max_rank=max_rank), input_size=(3, 4, 4), include_first=True)
    )


def low_rank_cnn():
    model = tiny_cnn()
    plan = make_plan(model, TrainingStart(0.3), input_size=(3, 8, 8), include_first=True, include_classifier=True)
    return factorize_for_training(model, plan)


def options(**changes):
    """Settings for 160 tiny images: 144 to train on, six steps per epoch."""
    defaults = {
        "tol": 0.1,
        "epochs": 3,
        "lr": 1e-2,
        "coefficient_steps": 2,
        "batch_size": 24,
        "frozen_fraction": 0.4,
        "max_rank": 6,
        "crop": 0,
        "flip": False,
    }
    return DlrtOptions(**(defaults | changes))


@pytest.fixture
def optimizer_steps():
    """Records a copy of every optimiser's state after each of its steps: (groups' parameters, states by id)."""
    steps = []

    def record(optimizer, *_):
        groups = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
        states = {
            id(parameter): {key: value.clone() for key, value in state.items()}
            for parameter, state in optimizer.state.items()
        }
        steps.append((groups, states))

    handle = register_optimizer_step_post_hook(record)
    yield steps
    handle.remove()


def distance_from_orthonormal(basis):
    basis = basis.detach().double()
    return float((basis.T @ basis - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max())


def held_out_accuracy(model, images, settings):
    """The accuracy on the held-out images, image by image."""
    _, held_out = split_held_out(images, fraction=settings.held_out, seed=settings.seed)
    right = 0
    with torch.no_grad():
        for index in range(len(held_out)):
            pixels, label = held_out.dataset[index]
            right += int(model(pixels[None]).argmax()) == label
    return right / len(held_out)


@pytest.mark.parametrize(
    ("make", "size"),
    [(low_rank_mlp, 4), (lambda: low_rank_mlp(norm=True), 4), (low_rank_cnn, 8)],
    ids=["mlp", "norm", "cnn"],
)
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_fine_tuning_learns(make, size, beta):
    model, images = make(), pattern_images(size=size)
    result = fine_tune_(model, images, options(beta=beta, **LONG))
    assert result.log[0].held_out_accuracy <= 0.6  # four classes, untrained
    assert result.log[-1].held_out_accuracy >= 0.9
    assert result.log[-1].loss < 0.2 * result.log[1].loss
    assert not model.training


def test_the_log_has_one_record_per_epoch_and_the_start():
    result = fine_tune_(low_rank_mlp(), pattern_images(), options())
    assert [record.epoch for record in result.log] == [0, 1, 2, 3]
    assert result.log[0].loss is None
    # 18 steps, of which the last round(0.4·18) = 7 are frozen: they begin within the second epoch.
    assert [record.frozen for record in result.log] == [False, False, True, True]
    assert result.held_out_images == 16


def test_parameters_in_the_log_are_those_of_the_whole_network_as_shipped():
    result = fine_tune_(low_rank_mlp(), pattern_images(), options())
    for record in result.log:
        first, inner = record.ranks["1"] * (48 + 40) + 40, record.ranks["4"] * (40 + 24) + 24
        assert record.parameters == first + inner + 24 * 4 + 4


@pytest.mark.parametrize("max_rank", [1, 3, None])
def test_ranks_stay_within_the_bounds_and_remove_parameters(max_rank):
    model = low_rank_mlp(max_rank=None)
    result = fine_tune_(model, pattern_images(), options(max_rank=max_rank, tol=1e-4, epochs=2))
    for record in result.log:
        for name, rank in record.ranks.items():
            assert 1 <= rank <= min(USEFUL[name], max_rank or USEFUL[name])
    assert {name: layer.rank for name, layer in factored_layers(model).items()} == dict(result.log[-1].ranks)


def test_ranks_never_fall_below_the_smallest():
    result = fine_tune_(low_rank_mlp(), pattern_images(), options(tol=0.9, min_rank=3))
    assert all(rank >= 3 for record in result.log for rank in record.ranks.values())
    assert result.log[-1].ranks == {"1": 3, "4": 3}


def test_ranks_can_grow():
    model = low_rank_mlp(max_rank=1)
    result = fine_tune_(model, pattern_images(), options(tol=0.01, max_rank=8))
    assert result.log[0].ranks == {"1": 1, "4": 1}
    assert all(rank > 1 for rank in result.log[-1].ranks.values())


def test_bases_turn_even_where_the_rank_is_the_largest_from_the_start():
    model = low_rank_mlp(max_rank=3)
    before = {
        name: (layer.U.detach().clone(), layer.V.detach().clone()) for name, layer in factored_layers(model).items()
    }
    result = fine_tune_(model, pattern_images(), options(tol=1e-3, max_rank=3))
    assert set(result.log[0].ranks.values()) == set(result.log[-1].ranks.values()) == {3}
    for name, layer in factored_layers(model).items():
        for old, new in zip(before[name], (layer.U, layer.V), strict=True):
            outside = new.detach() - old @ (old.T @ new.detach())
            assert outside.norm() > 0.05


@pytest.mark.parametrize("weight_decay", [0.0, 30.0])
def test_bases_stay_orthonormal_whatever_the_weight_decay(weight_decay):
    model = low_rank_mlp()
    fine_tune_(model, pattern_images(), options(weight_decay=weight_decay))
    for layer in factored_layers(model).values():
        assert distance_from_orthonormal(layer.U) < 1e-5
        assert distance_from_orthonormal(layer.V) < 1e-5


def test_the_optimiser_holds_everything_but_the_bases_once(optimizer_steps):
    model = low_rank_mlp(norm=True)
    layers = factored_layers(model).values()
    fine_tune_(model, pattern_images(), options(epochs=1))
    bases = {id(basis) for layer in layers for basis in (layer.U, layer.V)}
    others = {id(parameter) for parameter in model.parameters()} - bases
    for groups, _ in optimizer_steps:
        held = [parameter for group in groups for parameter in group]
        assert sorted(held) == sorted(others)


def test_weight_decay_is_for_matrices_only(optimizer_steps):
    # With a learning rate this small, decay is all that could change a value by more than a thousandth.
    model = low_rank_mlp(norm=True)
    before = snapshot(model)
    settings = options(lr=1e-6, weight_decay=1e4, epochs=1, frozen_fraction=1.0)
    fine_tune_(model, pattern_images(), settings)
    for name, value in model.state_dict().items():
        shrunk = float(value.norm()) < 0.98 * float(before[name].norm())
        assert shrunk is (name.endswith(".S") or name == "6.weight"), name


def test_biases_of_low_rank_layers_and_all_that_is_dense_are_trained():
    model = low_rank_cnn()
    before = snapshot(model)
    fine_tune_(model, pattern_images(size=8), options(frozen_fraction=1.0, epochs=1, max_rank=None))
    after = model.state_dict()
    for name, value in before.items():
        frozen = name.endswith((".U", ".V"))
        assert torch.equal(value, after[name]) is frozen, name
    assert {"0.bias", "3.bias", "9.bias", "11.bias", "5.weight"} <= set(before)


def test_the_frozen_phase_keeps_the_bases_bit_for_bit():
    model, bases = low_rank_mlp(), []

    def record(progress):
        if progress.epoch_ended:
            return
        bases.append({name: value.clone() for name, value in model.state_dict().items() if name[-1] in "UV"})

    fine_tune_(model, pattern_images(), options(), on_progress=record)
    assert len(bases) == 18
    frozen = bases[11:]  # after the twelfth step, the first of the last seven
    for step in frozen[1:]:
        assert all(torch.equal(value, frozen[0][name]) for name, value in step.items())
    assert not all(value.shape == bases[0][name].shape for name, value in frozen[0].items())
    final = model.state_dict()
    assert all(torch.equal(value, final[name]) for name, value in frozen[0].items())


@pytest.mark.parametrize(
    ("coefficient_steps", "optimizer_steps_expected"), [(1, 6 + 6), (2, 8 + 6), (4, 9 + 6), (10, 10 + 6)]
)
def test_a_cycle_is_one_basis_step_and_the_asked_number_of_coefficient_steps(
    optimizer_steps, coefficient_steps, optimizer_steps_expected
):
    # Three epochs of six steps, the last one frozen; a cycle goes on in the next epoch.
    settings = options(coefficient_steps=coefficient_steps, frozen_fraction=1 / 3)
    fine_tune_(low_rank_mlp(), pattern_images(), settings)
    assert len(optimizer_steps) == optimizer_steps_expected


class MovedMoments:
    """The first moment of every core after an optimiser step, moved by hand through the changes of basis since then."""

    def __init__(self, model):
        self.layers = factored_layers(model)
        self.moments, self.bases = {}, {}
        self.changes = 0

    def remember(self, optimizer, *_):
        for name, layer in self.layers.items():
            self.moments[name] = optimizer.state[layer.S]["exp_avg"].double()
            self.bases[name] = (layer.U.detach().double(), layer.V.detach().double())

    def follow(self, *_):
        for name, (U, V) in list(self.bases.items()):
            new_U, new_V = (basis.detach().double().clone() for basis in (self.layers[name].U, self.layers[name].V))
            if new_U.shape == U.shape and torch.equal(new_U, U):
                continue
            self.changes += 1
            self.moments[name] = new_U.T @ U @ self.moments[name] @ V.T @ new_V
            self.bases[name] = (new_U, new_V)

    def compare(self, optimizer, *_):
        self.follow()
        for name, expected in self.moments.items():
            found = optimizer.state[self.layers[name].S]["exp_avg"]
            assert found.shape == expected.shape == self.layers[name].S.shape
            assert relative_difference(found, expected) < 1e-4


@pytest.mark.parametrize("coefficient_steps", [1, 3])
def test_the_optimisers_state_follows_its_core_through_every_change_of_basis(optimizer_steps, coefficient_steps):
    model = low_rank_mlp()
    moved = MovedMoments(model)
    hooks = [register_optimizer_step_pre_hook(moved.compare), register_optimizer_step_post_hook(moved.remember)]
    try:
        settings = options(coefficient_steps=coefficient_steps)
        fine_tune_(model, pattern_images(), settings, on_progress=moved.follow)
    finally:
        for hook in hooks:
            hook.remove()
    # 11 steps before the frozen ones: each cycle but the first extends, each truncates, in both layers.
    cycles = math.ceil(11 / (coefficient_steps + 1))
    assert moved.changes == 2 * (2 * cycles - 1)
    for layer in factored_layers(model).values():
        for count, (_, states) in enumerate(optimizer_steps, start=1):
            assert int(states[id(layer.S)]["step"]) == count  # never begun again
        # Entries of new directions are not left at zero, where the first steps would be far too long.
        assert (optimizer_steps[1][1][id(layer.S)]["exp_avg_sq"] > 0).all()


def test_tensors_have_the_final_rank_and_no_rank_is_stored_beside_them():
    model = low_rank_mlp()
    names = set(model.state_dict())
    result = fine_tune_(model, pattern_images(), options(tol=0.5))
    assert set(model.state_dict()) == names
    for name, rank in result.log[-1].ranks.items():
        shapes = {key: tuple(getattr(model.get_submodule(name), key).shape) for key in "USV"}
        n, m = (48, 40) if name == "1" else (40, 24)
        assert shapes == {"U": (m, rank), "S": (rank, rank), "V": (n, rank)}
    assert all(parameter.grad is None for layer in factored_layers(model).values() for parameter in (layer.U, layer.V))


@pytest.mark.parametrize("make", [low_rank_mlp, low_rank_cnn], ids=["mlp", "cnn"])
def test_the_result_depends_on_the_seed_only(make):
    start, images = make(), pattern_images(size=8 if make is low_rank_cnn else 4)
    states, logs = [], []
    for seed, noise in ((1, 10), (1, 20), (2, 10)):
        model = copy.deepcopy(start)
        torch.manual_seed(noise)
        logs.append(fine_tune_(model, images, options(seed=seed, epochs=2, crop=1, flip=True)))
        states.append(model.state_dict())
    assert logs[0] == logs[1] != logs[2]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items() if name.endswith("bias"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_state_of_the_frozen_epochs_stays(seed):
    # Much noise, so that the accuracy goes up and down.
    model, images = low_rank_cnn(), pattern_images(size=8, noise=1.0)
    settings = options(seed=seed, epochs=6, frozen_fraction=0.8, lr=5e-2, held_out=0.3)
    result = fine_tune_(model, images, settings)
    frozen = {record.epoch: record.held_out_accuracy for record in result.log if record.frozen}
    best = max(frozen.values())
    assert result.chosen_epoch == max(epoch for epoch, accuracy in frozen.items() if accuracy == best)
    assert held_out_accuracy(model, images, settings) == pytest.approx(best)


def test_at_least_one_of_these_runs_does_not_choose_its_last_epoch():
    chosen = []
    for seed in range(3):
        settings = options(seed=seed, epochs=6, frozen_fraction=0.8, lr=5e-2, held_out=0.3)
        chosen.append(fine_tune_(low_rank_cnn(), pattern_images(size=8, noise=1.0), settings).chosen_epoch)
    assert any(epoch < 6 for epoch in chosen)


def test_of_equally_good_epochs_the_last_one_stays():
    result = fine_tune_(low_rank_mlp(), pattern_images(), options(**LONG))
    assert [record.held_out_accuracy for record in result.log[-3:]] == [1.0, 1.0, 1.0]
    assert result.chosen_epoch == LONG["epochs"]


@pytest.mark.parametrize(("epochs", "warm_up"), [(1, 1), (10, 3)])
def test_the_learning_rate_rises_in_the_first_twentieth_and_falls_as_a_cosine(epochs, warm_up):
    rates = []
    handle = register_optimizer_step_post_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    fine_tune_(low_rank_mlp(), pattern_images(), options(epochs=epochs, frozen_fraction=1.0, lr=0.02))
    handle.remove()
    steps = 6 * epochs
    rising = [(step + 1) / warm_up for step in range(warm_up)]
    falling = [(1 + math.cos(math.pi * step / (steps - warm_up))) / 2 for step in range(steps - warm_up)]
    expected = [[0.02 * factor] * 2 for factor in rising + falling]
    assert torch.allclose(torch.tensor(rates), torch.tensor(expected))


def test_the_penalty_is_of_the_retained_cores_only(monkeypatch):
    # The rows and columns that augmentation adds are near zero and must not count.
    sizes = []

    def record(core, *, scale_free):
        sizes.append(tuple(core.shape))
        return core.square().sum()

    monkeypatch.setattr("lrcompress.dlrt.training.conditioning_penalty", record)
    fine_tune_(low_rank_mlp(max_rank=4), pattern_images(), options(tol=1e-4, max_rank=4, beta=1e-3))
    assert set(sizes) == {(4, 4)}


def test_no_image_is_both_trained_on_and_held_out():
    count = 40
    pixels = (torch.arange(count) / 100).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    images = ImageSet(TensorImages(pixels, torch.arange(count) % 4), (), "numbers")
    model = low_rank_mlp()
    seen = {True: set(), False: set()}
    model.register_forward_pre_hook(
        lambda module, inputs: seen[module.training].update((inputs[0][:, 0, 0, 0] * 100).round().int().tolist())
    )
    fine_tune_(model, images, options(epochs=1, batch_size=12, held_out=0.2))
    assert len(seen[False]) == 8
    assert seen[True] | seen[False] == set(range(count))
    assert not seen[True] & seen[False]


def condition_numbers(model):
    sigmas = [torch.linalg.svdvals(layer.S.detach().double()) for layer in factored_layers(model).values()]
    return [float(sigma[0] / sigma[-1]) for sigma in sigmas]


@pytest.mark.parametrize("penalty", ["scale-free", "paper"])
def test_the_penalty_lowers_the_condition_numbers(penalty):
    numbers = {}
    for beta in (0.0, 0.3):
        model = low_rank_mlp()
        fine_tune_(model, pattern_images(), options(beta=beta, penalty=penalty, epochs=6, tol=0.01))
        numbers[beta] = condition_numbers(model)
    assert max(numbers[0.3]) < 1.5 < max(numbers[0.0])


@pytest.mark.parametrize(
    ("norm", "penalty", "resolved"),
    [
        (True, "auto", "scale-free"),
        (False, "auto", "paper"),
        (True, "paper", "paper"),
        (False, "scale-free", "scale-free"),
    ],
)
def test_the_penalty_is_scale_free_where_a_normalisation_follows(norm, penalty, resolved):
    settings = options(penalty=penalty, epochs=1)
    assert fine_tune_(low_rank_mlp(norm=norm), pattern_images(60), settings).penalty == resolved


def test_under_bfloat16_the_weights_stay_float32_and_the_network_learns():
    model = low_rank_mlp()
    result = fine_tune_(model, pattern_images(), options(precision="bfloat16", beta=0.05, **LONG))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert result.log[-1].held_out_accuracy >= 0.9


def test_a_network_without_low_rank_layers_is_fine_tuned_as_it_is():
    model = tiny_mlp()
    result = fine_tune_(model, pattern_images(), options(beta=0.1, epochs=4))
    assert result.log[-1].held_out_accuracy >= 0.9
    assert result.log[-1].ranks == {}


@pytest.mark.parametrize("coefficient_steps", [1, 10])
@pytest.mark.parametrize("frozen_fraction", [0.1, 1.0])
def test_a_loss_that_is_not_finite_is_an_explained_error(coefficient_steps, frozen_fraction):
    settings = options(lr=1e30, coefficient_steps=coefficient_steps, frozen_fraction=frozen_fraction)
    with pytest.raises(TrainingError, match=r"the loss is (inf|nan) in step \d+ of 18") as refused:
        fine_tune_(low_rank_mlp(), pattern_images(), settings)
    assert "--lr" in refused.value.hint


def test_an_infinite_loss_in_the_first_step_is_an_explained_error():
    model = low_rank_mlp()
    with torch.no_grad():  # finite logits, whose differences are not
        model[6].bias.copy_(torch.tensor([3e38, -3e38, 0, 0]))
    with pytest.raises(TrainingError, match="the loss is inf in step 1 of 18"):
        fine_tune_(model, pattern_images(), options())


class NaNGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize("coefficient_steps", [1, 10])
@pytest.mark.parametrize("frozen_fraction", [0.1, 1.0])
def test_gradients_that_are_not_finite_are_an_explained_error(coefficient_steps, frozen_fraction):
    model = low_rank_mlp()
    model[5].forward = NaNGradient.apply
    settings = options(coefficient_steps=coefficient_steps, frozen_fraction=frozen_fraction)
    with pytest.raises(TrainingError, match=r"in step [123] of 18"):
        fine_tune_(model, pattern_images(), settings)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_are_refused(count):
    with pytest.raises(DataError, match=f"{count} training images are too few") as refused:
        fine_tune_(low_rank_mlp(), pattern_images(count), options())
    assert refused.value.hint


def test_progress_is_reported_after_every_step():
    reports = []
    fine_tune_(low_rank_mlp(), pattern_images(), options(), on_progress=reports.append)
    assert [(report.step, report.epoch) for report in reports if report.epoch_ended] == [(6, 1), (12, 2), (18, 3)]
    reports = [report for report in reports if not report.epoch_ended]
    assert [report.step for report in reports] == list(range(1, 19))
    assert {(report.steps, report.epochs) for report in reports} == {(18, 3)}
    assert [report.epoch for report in reports] == [1] * 6 + [2] * 6 + [3] * 6
    assert all(report.loss > 0 and report.mean_rank >= 1 for report in reports)


def test_a_last_batch_of_one_image_is_not_a_step():
    reports = []
    # 145 images to train on, in batches of 24: six and one image.
    fine_tune_(low_rank_mlp(norm=True), pattern_images(161), options(epochs=1), on_progress=reports.append)
    assert [report.step for report in reports if not report.epoch_ended] == list(range(1, 7))
    assert {report.steps for report in reports} == {6}


def test_the_distillation_loss_is_the_divergence_of_the_softened_distributions():
    logits, wanted, T = torch.randn(5, 4), torch.randn(5, 4), 3.0
    p, q = ((values / T).exp() / (values / T).exp().sum(1, keepdim=True) for values in (wanted, logits))
    expected = T**2 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation_loss(logits, wanted, temperature=T)) == pytest.approx(float(expected), rel=1e-5)
    assert float(distillation_loss(wanted, wanted + 7.0)) == pytest.approx(0, abs=1e-6)


def test_under_distillation_the_network_follows_its_teacher_and_leaves_it_alone():
    images = pattern_images()
    teacher = tiny_mlp(seed=3)
    fine_tune_(teacher, images, options(epochs=4))
    before = snapshot(teacher)
    # Labels that are shifted by one: only the teacher knows the true ones.
    wrong = ImageSet(TensorImages(images.dataset.pixels, (images.dataset.labels + 1) % 4), (), "wrong labels")
    model = low_rank_mlp()
    fine_tune_(model, wrong, options(distill=1.0, **LONG), teacher=teacher)
    with torch.no_grad():
        agreement = model(images.dataset.pixels).argmax(1) == images.dataset.labels
    assert float(agreement.float().mean()) >= 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_single_batch_per_epoch_is_trained_on_before_the_frozen_phase(optimizer_steps):
    model, ranks, heads = low_rank_mlp(), [], [tiny_mlp()[6].weight.detach().clone()]

    def record(progress):
        if progress.epoch_ended:
            heads.append(model[6].weight.detach().clone())
            ranks.append(model[1].rank)

    # Six epochs of one step: basis, coefficients, coefficients, basis, and two that are frozen.
    settings = options(epochs=6, batch_size=144, frozen_fraction=1 / 3, coefficient_steps=2, tol=1e-3)
    result = fine_tune_(model, pattern_images(), settings, on_progress=record)
    assert len(optimizer_steps) == 4
    changed = [not torch.equal(one, two) for one, two in itertools.pairwise(heads)]
    assert changed == [False, True, True, False, True, True]
    assert ranks == [12, 12, 6, 12, 6, 6]
    assert [record.frozen for record in result.log] == [False] * 5 + [True] * 2
    assert result.log[3].loss < result.log[1].loss


def test_dropout_depends_on_the_seed_only_and_leaves_the_global_generator_alone():
    start = low_rank_mlp()
    start[2] = nn.Dropout(0.5)
    losses, states = [], []
    for seed, noise in ((1, 10), (1, 20), (2, 10)):
        model = copy.deepcopy(start)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        losses.append([record.loss for record in fine_tune_(model, pattern_images(), options(seed=seed)).log])
        assert torch.equal(torch.get_rng_state(), before)
        states.append(model.state_dict())
    assert losses[0] == losses[1] != losses[2]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class WithAuxiliaryLogits(nn.Module):
    """A network that answers with a second classifier's logits too while it is trained, as torchvision's GoogLeNet."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.auxiliary = nn.Linear(48, 4)

    def forward(self, x):
        logits = self.network(x)
        return (logits, self.auxiliary(x.flatten(1))) if self.training else logits


def test_a_network_with_auxiliary_logits_is_trained_by_its_own():
    plain, images = low_rank_mlp(), pattern_images()
    model = WithAuxiliaryLogits(copy.deepcopy(plain))
    auxiliary = snapshot(model.auxiliary)
    result = fine_tune_(model, images, options(**LONG))
    assert result.log[-1].held_out_accuracy >= 0.9
    assert [record.loss for record in result.log] == [
        record.loss for record in fine_tune_(plain, images, options(**LONG)).log
    ]
    assert all(torch.equal(value, auxiliary[name]) for name, value in model.auxiliary.state_dict().items())
