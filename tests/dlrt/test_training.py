import copy
import functools
import itertools
import math
import time

import pytest
import torch
from networks import TensorImages, pattern_images, relative_difference, snapshot, tiny_mlp
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from trainings import (
    MIDDLES,
    any_scheme,
    distance_from_orthonormal,
    held_out_accuracy,
    low_rank_cnn,
    low_rank_mlp,
    options,
    written,
)

from lrcompress.data import ImageSet
from lrcompress.dlrt import Circumstances, fine_tune_
from lrcompress.errors import DataError, OptionError, TrainingError
from lrcompress.factorize import factorize_for_training, fold_
from lrcompress.linalg import Factors
from lrcompress.nn import count_shipped_parameters, factored_layers
from lrcompress.plan import Budget, Energy, UniformRank, make_plan

USEFUL = {"1": 21, "4": 14}  # 48×40 and 24×40: 21·88 < 1920 and 14·64 < 960, and one more is not

LONG = {"epochs": 10, "coefficient_steps": 5, "lr": 3e-2, "max_rank": None}


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
        first, inner = record.ranks["1"][0] * (48 + 40) + 40, record.ranks["4"][0] * (40 + 24) + 24
        assert record.parameters == first + inner + 24 * 4 + 4


@pytest.mark.parametrize("max_rank", [1, 3, None])
def test_ranks_stay_within_the_bounds_and_remove_parameters(max_rank):
    model = low_rank_mlp(max_rank=None)
    result = fine_tune_(model, pattern_images(), options(max_rank=max_rank, tol=1e-4, epochs=2))
    for record in result.log:
        for name, (rank,) in record.ranks.items():
            assert 1 <= rank <= min(USEFUL[name], max_rank or USEFUL[name])
    assert {name: layer.ranks for name, layer in factored_layers(model).items()} == dict(result.log[-1].ranks)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 4096, "coefficient_steps": 1, "epochs": 8}, "each epoch is a single step"),
        ({"steps": 8, "coefficient_steps": 10}, "they hardly adapt"),
        ({"coefficient_steps": 1}, None),
    ],
)
def test_settings_that_make_little_sense_for_so_many_images_are_told(settings, said):
    told = []
    result = fine_tune_(low_rank_mlp(), pattern_images(), options(**settings), on_warning=told.append)
    doubts = [text for text in told if "single step" in text or "hardly adapt" in text]
    assert [said in text for text in doubts] == ([] if said is None else [True])
    assert set(doubts) <= set(result.warnings)


def test_ranks_never_fall_below_the_smallest():
    result = fine_tune_(low_rank_mlp(), pattern_images(), options(tol=0.9, min_rank=3))
    assert all(rank >= 3 for record in result.log for (rank,) in record.ranks.values())
    assert result.log[-1].ranks == {"1": (3,), "4": (3,)}


def test_ranks_can_grow():
    model = low_rank_mlp(max_rank=1)
    result = fine_tune_(model, pattern_images(), options(tol=0.01, max_rank=8))
    assert result.log[0].ranks == {"1": (1,), "4": (1,)}
    assert all(rank > 1 for (rank,) in result.log[-1].ranks.values())


def test_bases_turn_even_where_the_rank_is_the_largest_from_the_start():
    model = low_rank_mlp(max_rank=3)
    before = {
        name: (layer.U.detach().clone(), layer.V.detach().clone()) for name, layer in factored_layers(model).items()
    }
    result = fine_tune_(model, pattern_images(), options(tol=1e-3, max_rank=3))
    assert set(result.log[0].ranks.values()) == set(result.log[-1].ranks.values()) == {(3,)}
    for name, layer in factored_layers(model).items():
        for old, new in zip(before[name], (layer.U, layer.V), strict=True):
            outside = new.detach() - old @ (old.mT @ new.detach())
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
        if name.endswith((".U", ".V")):  # turned within their span, to begin with
            assert torch.allclose(value @ value.mT, after[name] @ after[name].mT, atol=1e-5)
        else:
            assert not torch.equal(value, after[name]), name
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
            self.moments[name] = optimizer.state[layer.S]["exp_avg"][..., 0].double()
            self.bases[name] = (layer.U.detach().double(), layer.V.detach().double())

    def follow(self, *_):
        for name, (U, V) in list(self.bases.items()):
            new_U, new_V = (basis.detach().double().clone() for basis in (self.layers[name].U, self.layers[name].V))
            if new_U.shape == U.shape and torch.equal(new_U, U):
                continue
            self.changes += 1
            self.moments[name] = new_U.mT @ U @ self.moments[name] @ V.mT @ new_V
            self.bases[name] = (new_U, new_V)

    def compare(self, optimizer, *_):
        self.follow()
        for name, expected in self.moments.items():
            found = optimizer.state[self.layers[name].S]["exp_avg"]
            assert found.shape == (*expected.shape, 1) == self.layers[name].S.shape
            assert relative_difference(found[..., 0], expected) < 1e-4


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
    # 11 steps before the frozen ones, of which an epoch has six. Each cycle but the first extends, each truncates, in
    # both layers: six of two steps, or four of which the second one ends with its epoch after two steps.
    cycles = {1: 6, 3: 4}[coefficient_steps]
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
    for name, (rank,) in result.log[-1].ranks.items():
        shapes = {key: tuple(getattr(model.get_submodule(name), key).shape) for key in "USV"}
        n, m = (48, 40) if name == "1" else (40, 24)
        assert shapes == {"U": (1, m, rank), "S": (1, rank, rank, 1), "V": (1, n, rank)}
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
    for seed in range(6):
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

    monkeypatch.setattr("lrcompress.dlrt.penalty.conditioning_penalty", record)
    fine_tune_(low_rank_mlp(max_rank=4), pattern_images(), options(tol=1e-4, max_rank=4, beta=1e-3))
    assert set(sizes) == {(1, 4, 4)}


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
    sigmas = [torch.linalg.svdvals(layer.S[0, :, :, 0].detach().double()) for layer in factored_layers(model).values()]
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
    with pytest.raises(
        TrainingError, match=r"the loss is (inf|nan)( \(first in `[134]`\))? in step \d+ of 18"
    ) as refused:
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
    assert [(report.step, report.epoch) for report in reports if report.epoch_ended] == [
        (0, 0),
        (6, 1),
        (12, 2),
        (18, 3),
    ]
    assert reports[0].loss is None
    reports = [report for report in reports if not report.epoch_ended]
    assert [report.step for report in reports] == list(range(1, 19))
    assert {(report.steps, report.epochs) for report in reports} == {(18, 3)}
    assert [report.epoch for report in reports] == [1] * 6 + [2] * 6 + [3] * 6
    assert all(report.loss > 0 and report.mean_rank >= 1 for report in reports)


def test_the_accuracy_on_perturbed_images_is_reported_while_training():
    reports = []
    result = fine_tune_(low_rank_mlp(), pattern_images(), options(adversarial="fgsm-rs"), on_progress=reports.append)
    ended = [report.held_out_robust_accuracy for report in reports if report.epoch_ended]
    assert ended == [record.held_out_robust_accuracy for record in result.log]
    assert result.attacked_images == result.held_out_images == 16
    plain = fine_tune_(low_rank_mlp(), pattern_images(), options(), on_progress=reports.append)
    assert (reports[-1].held_out_robust_accuracy, plain.attacked_images) == (None, 0)


def test_of_layers_with_two_ranks_the_output_rank_counts_for_the_mean():
    _, model = any_scheme("tucker2", rank=4)
    reports = []
    fine_tune_(
        model,
        pattern_images(size=8),
        options(policy=UniformRank(4), max_rank=None, steps=1),
        circumstances=Circumstances(fixed_ranks={"2": (2, 4)}),
        on_progress=reports.append,
    )
    assert reports[-1].mean_rank == pytest.approx((2 + 4 + 4) / 3)


def test_a_last_batch_of_one_image_is_not_a_step():
    reports = []
    # 145 images to train on, in batches of 24: six and one image.
    fine_tune_(low_rank_mlp(norm=True), pattern_images(161), options(epochs=1), on_progress=reports.append)
    assert [report.step for report in reports if not report.epoch_ended] == list(range(1, 7))
    assert {report.steps for report in reports} == {6}


def test_under_distillation_the_network_follows_its_teacher_and_leaves_it_alone():
    images = pattern_images()
    teacher = tiny_mlp(seed=3)
    fine_tune_(teacher, images, options(epochs=4))
    before = snapshot(teacher)
    # Labels that are shifted by one: only the teacher knows the true ones.
    wrong = ImageSet(TensorImages(images.dataset.pixels, (images.dataset.labels + 1) % 4), (), "wrong labels")
    model = low_rank_mlp()
    fine_tune_(model, wrong, options(distill=1.0, **LONG), dense=teacher)
    with torch.no_grad():
        agreement = model(images.dataset.pixels).argmax(1) == images.dataset.labels
    assert float(agreement.float().mean()) >= 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_single_batch_per_epoch_is_trained_on_before_the_frozen_phase(optimizer_steps):
    model, ranks, heads = low_rank_mlp(), [], []

    def record(progress):
        if progress.epoch_ended:
            heads.append(model[6].weight.detach().clone())
            ranks.append(model[1].ranks[0])

    # Six epochs of one step: twice a basis and then a coefficient step, and two that are frozen.
    settings = options(epochs=6, batch_size=144, frozen_fraction=1 / 3, coefficient_steps=2, tol=1e-3)
    result = fine_tune_(model, pattern_images(), settings, on_progress=record)
    assert len(optimizer_steps) == 4
    changed = [not torch.equal(one, two) for one, two in itertools.pairwise(heads)]
    assert changed == [False, True, False, True, True, True]
    assert ranks[1:] == [12, 6, 12, 6, 6, 6]
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


@pytest.mark.parametrize("case", MIDDLES)
def test_every_scheme_is_trained_and_folds_to_what_it_computes(case):
    _, model = any_scheme(case)
    before, images = snapshot(model), pattern_images(size=8)
    result = fine_tune_(model, images, options(tol=1e-3, epochs=5, lr=2e-2, every_gradient=True))
    assert result.log[-1].loss < 0.95 * result.log[1].loss
    for name, layer in factored_layers(model).items():
        assert distance_from_orthonormal(layer.U) < 1e-5
        assert distance_from_orthonormal(layer.V) < 1e-5
        assert not torch.equal(layer.bias, before[f"{name}.bias"])
    pixels = images.dataset.pixels
    with torch.no_grad():
        expected = model(pixels)
        folded = fold_(copy.deepcopy(model))
        assert not factored_layers(folded)
        assert relative_difference(folded(pixels), expected) < 1e-5
    assert sum(value.numel() for value in folded.parameters()) == result.log[-1].parameters


def test_every_gradient_makes_each_step_one_of_the_optimiser(optimizer_steps):
    fine_tune_(low_rank_mlp(), pattern_images(), options(every_gradient=True))
    assert len(optimizer_steps) == 18


@pytest.mark.parametrize("batch", ["full", "one step of one image too many"])
def test_every_image_is_trained_on_once_per_epoch(batch):
    count = 160 if batch == "full" else 161
    pixels = (torch.arange(count) / 200).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    images = ImageSet(TensorImages(pixels, torch.arange(count) % 4), (), "numbers")
    model, seen = low_rank_mlp(), []
    model.register_forward_pre_hook(
        lambda module, inputs: seen.extend((inputs[0][:, 0, 0, 0] * 200).round().int().tolist() * module.training)
    )
    fine_tune_(model, images, options(epochs=1, every_gradient=True))
    assert len(seen) == len(set(seen)) == 144


@pytest.mark.parametrize(
    "policy", [Budget(fraction=0.4), Budget(parameters=1500), Energy(0.6), UniformRank(2)], ids=str
)
def test_the_policy_that_plans_goes_on_choosing_while_training(policy):
    model = low_rank_mlp(max_rank=None)
    start = count_shipped_parameters(model)
    result = fine_tune_(model, pattern_images(), options(policy=policy, max_rank=None, epochs=8, lr=2e-2))
    dense = sum(value.numel() for value in tiny_mlp().parameters())
    for record in result.log[1:]:
        if isinstance(policy, Budget):
            limit = policy.parameters or int(policy.fraction * dense)
            assert limit - (48 + 40) < record.parameters <= limit
        elif isinstance(policy, UniformRank):
            assert record.ranks == {"1": (2,), "4": (2,)}
        else:
            assert record.parameters < start
    assert result.log[-1].loss < 0.8 * result.log[1].loss


@pytest.mark.parametrize("patience", [None, 1])
def test_an_annealed_budget_starts_wide_and_ends_with_what_was_asked_for(patience):
    model = low_rank_mlp(max_rank=None)
    dense = sum(value.numel() for value in tiny_mlp().parameters())
    budget = Budget(fraction=0.3)
    result = fine_tune_(
        model,
        pattern_images(),
        options(policy=budget, max_rank=None, epochs=9, anneal=2.0, patience=patience, coefficient_steps=1),
    )
    sizes = [record.parameters for record in result.log]
    assert 0.5 * dense < sizes[0] <= 0.6 * dense
    assert sizes[1:] == sorted(sizes[1:], reverse=True)
    assert sizes[-1] <= 0.3 * dense
    assert all(record.parameters <= 0.3 * dense for record in result.log if record.frozen)
    if patience is None:
        assert sizes[1] > 0.3 * dense


@pytest.mark.parametrize("norm", [True, False])
def test_a_short_run_conditions_the_cores_as_far_as_was_asked(norm):
    model = low_rank_mlp(norm=norm)
    for layer in factored_layers(model).values():
        sigma = torch.logspace(0, -1.2, 6) * layer.S.detach().norm() / 2
        layer.set_factors_(Factors(layer.U.detach(), torch.diag(sigma)[None, :, :, None], layer.V.detach()))
    settings = options(policy=UniformRank(6), epochs=25, max_kappa=5.0, lr=5e-3, coefficient_steps=10)
    result = fine_tune_(model, pattern_images(), settings)
    start, chosen = result.log[0], result.log[result.chosen_epoch]
    assert min(core.kappa for core in start.cores.values()) > 10
    assert max(core.kappa for core in chosen.cores.values()) <= 5
    assert chosen.held_out_accuracy >= start.held_out_accuracy


def network_with_everything():
    """Batch norm, dropout and a layer of each kind: all that a state could forget."""
    model = low_rank_cnn()
    model[2] = nn.Dropout(0.2)
    return model


EVERYTHING = {"crop": 1, "flip": True, "beta": 0.02, "max_kappa": 3.0, "every_gradient": True, "held_out": 0.2}
WAYS = {
    "every gradient": EVERYTHING,
    "published, sgd": {"optimizer": "sgd", "coefficient_steps": 3, "clip_norm": 1.0},
    "budget": {"policy": Budget(fraction=0.5), "max_rank": None, "accumulate": 3},
}


@functools.cache
def uninterrupted(way):
    """The images, the settings, the number of steps, the weights and the result of a run as long as it takes."""
    images, settings, model, steps = (
        pattern_images(size=8, noise=0.5),
        options(**WAYS[way]),
        network_with_everything(),
        [],
    )
    result = fine_tune_(model, images, settings, on_progress=lambda progress: steps.append(progress.step))
    return images, settings, steps[-1], model.state_dict(), result


# In the adaptive phase, at the end of an epoch, around the beginning of the frozen phase, at the very end.
@pytest.mark.parametrize("step", [1, 6, 11, None])
@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_after_any_step_ends_as_one_that_was_not(way, step):
    images, settings, steps, weights, expected = uninterrupted(way)
    step, states, done = step or steps, [], []
    with pytest.raises(TrainingError, match=f"stopped in step {step} of {steps}") as stopped:
        fine_tune_(
            network_with_everything(),
            images,
            settings,
            on_progress=lambda progress: done.append(progress.step),
            save=lambda state: states.append(written(state)),
            is_stopped=lambda: done[-1] == step,
        )
    assert "--resume" in stopped.value.hint
    model, reports = network_with_everything(), []
    assert fine_tune_(model, images, settings, resume=states[-1], on_progress=reports.append) == expected
    assert [report.step for report in reports if not report.epoch_ended] == list(range(step + 1, steps + 1))
    for name, value in weights.items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_was_not():
    images, settings, _, weights, expected = uninterrupted("every gradient")
    states, asked = [None], itertools.count(1)
    for _ in range(9):
        model = network_with_everything()
        try:
            result = fine_tune_(
                model,
                images,
                settings,
                resume=states[-1],
                save=lambda state: states.append(written(state)),
                is_stopped=lambda: next(asked) % 4 == 0,
            )
        except TrainingError:
            continue
        break
    assert len(states) > 3
    assert result == expected
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())


def test_saving_after_every_step_changes_nothing():
    images, states = pattern_images(), []
    one, other = low_rank_mlp(), low_rank_mlp()
    expected = fine_tune_(one, images, options())
    assert fine_tune_(other, images, options(save_seconds=0.0), save=states.append) == expected
    assert [state["step"] for state in states] == [*range(1, 19), 18]
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"steps": 10}, {"patience": 1}], ids=str)
def test_without_need_only_the_end_is_saved_from_which_nothing_is_trained_any_more(changes):
    states, reports, settings = [], [], options(save_seconds=3600.0, **changes)
    whole, model = low_rank_mlp(), low_rank_mlp()
    expected = fine_tune_(whole, pattern_images(), settings, save=lambda state: states.append(written(state)))
    assert len(states) == 1
    assert fine_tune_(model, pattern_images(), settings, resume=states[0], on_progress=reports.append) == expected
    assert reports == []
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_run_that_the_clock_has_ended_is_over_when_it_is_resumed(monkeypatch):
    now, states, reports = [0.0], [], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def tick(progress):
        now[0] += 0 if progress.epoch_ended else 1.0

    settings = options(time_limit=8.0, save_seconds=3600.0)
    save = {"save": lambda state: states.append(written(state))}
    expected = fine_tune_(low_rank_mlp(), pattern_images(), settings, on_progress=tick, **save)
    resumed = fine_tune_(low_rank_mlp(), pattern_images(), settings, resume=states[-1], on_progress=reports.append)
    assert resumed == expected
    assert reports == []


@pytest.mark.parametrize("steps", [1, 4, 6, 9, 100])
def test_a_number_of_steps_ends_the_run_whatever_the_epochs(steps):
    reports = []
    result = fine_tune_(low_rank_mlp(), pattern_images(), options(steps=steps), on_progress=reports.append)
    assert sum(not report.epoch_ended for report in reports) == min(steps, 18)
    assert len(result.log) == 1 + math.ceil(min(steps, 18) / 6)
    assert result.log[-1].frozen
    assert result.chosen_epoch >= 1


def test_a_stop_at_a_number_of_steps_within_an_epoch_is_resumed_too():
    settings, states, done = options(steps=10), [], []
    whole, model = low_rank_mlp(), low_rank_mlp()
    expected = fine_tune_(whole, pattern_images(), settings)
    with pytest.raises(TrainingError):
        fine_tune_(
            low_rank_mlp(),
            pattern_images(),
            settings,
            on_progress=lambda progress: done.append(progress.step),
            save=lambda state: states.append(written(state)),
            is_stopped=lambda: done[-1] == 10,
        )
    assert fine_tune_(model, pattern_images(), settings, resume=states[-1]) == expected
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("limit", [9.0, 18 / 3.5, 100.0])
def test_a_time_limit_shrinks_the_schedule(monkeypatch, limit):
    now, rates, reports = [0.0], [], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def tick(progress):
        if not progress.epoch_ended:
            now[0] += 1.0  # a second for each step
            reports.append(progress)

    handle = register_optimizer_step_post_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    settings = options(time_limit=limit, every_gradient=True, warm_up=0.2, lr=0.02)
    result = fine_tune_(low_rank_mlp(), pattern_images(), settings, on_progress=tick)
    handle.remove()
    steps = min(18, math.ceil(limit))
    assert len(reports) == len(rates) == steps
    pace = max(1.0, 18 / limit)
    for number, rate in enumerate(rates):
        position = pace * number
        rising, falling = (position + 1) / 4, (1 + math.cos(math.pi * (position - 4) / 14)) / 2
        assert rate == pytest.approx(0.02 * (min(1.0, rising) if position < 4 else falling))
    assert result.log[-1].frozen


def test_patience_ends_the_adaptive_and_then_the_frozen_phase():
    # The labels are at random: after the first epochs nothing becomes better for long.
    images = pattern_images(240, noise=1.0)
    labels = torch.randint(0, 4, (240,), generator=torch.Generator().manual_seed(1))
    images = ImageSet(TensorImages(images.dataset.pixels, labels), (), "noise")
    settings = options(epochs=60, patience=2, lr=1e-4, held_out=0.4)
    result = fine_tune_(low_rank_mlp(), images, settings)
    assert len(result.log) < 60
    accuracies = [record.held_out_accuracy for record in result.log]
    adaptive = [record for record in result.log if not record.frozen]
    assert max(accuracies[: len(adaptive)]) == max(accuracies[: len(adaptive) - 2])  # two epochs without a better one
    assert max(accuracies[-2:]) <= max(accuracies[:-2])
    assert result.log[-1].frozen
    whole = fine_tune_(low_rank_mlp(), images, options(epochs=len(accuracies) - 1, lr=1e-4, held_out=0.4))
    assert len(whole.log) == len(accuracies)


@pytest.mark.parametrize("accumulate", [5, 12])
def test_a_batch_in_parts_is_the_batch(accumulate):
    images = pattern_images()
    models = [low_rank_mlp(norm=True) for _ in range(2)]
    settings = [options(accumulate=parts, optimizer="sgd", lr=0.1, label_smoothing=0.1) for parts in (1, accumulate)]
    logs = [fine_tune_(model, images, one).log for model, one in zip(models, settings, strict=True)]
    assert [record.ranks for record in logs[0]] == [record.ranks for record in logs[1]]
    losses = [torch.tensor([record.loss for record in log[1:]]) for log in logs]
    assert torch.allclose(*losses, rtol=1e-4)
    weights = [[layer.weight for layer in factored_layers(model).values()] for model in models]
    assert all(relative_difference(one, other) < 1e-3 for one, other in zip(*weights, strict=True))


@pytest.mark.parametrize("count", [163, 165])
def test_no_part_of_a_batch_has_one_image(count):
    # On one image `BatchNorm1d` raises.
    model = low_rank_mlp()
    model[2] = nn.BatchNorm1d(40)
    result = fine_tune_(model, pattern_images(count), options(accumulate=12, epochs=1))
    assert result.log[-1].loss > 0


def test_the_penalty_drives_every_layer_below_a_largest_kappa():
    target, numbers = 1.15, {}
    for max_kappa in (None, target):
        model = low_rank_mlp()
        settings = options(max_kappa=max_kappa, beta=0.01 * bool(max_kappa), epochs=14, tol=0.01, lr=2e-2)
        fine_tune_(model, pattern_images(), settings)
        numbers[max_kappa] = condition_numbers(model)
    assert max(numbers[target]) <= target < min(numbers[None])


def test_with_beta_zero_no_penalty_is_computed(monkeypatch):
    def never(*_, **__):
        raise AssertionError("computed")

    monkeypatch.setattr("lrcompress.dlrt.penalty.conditioning_penalty", never)
    fine_tune_(low_rank_mlp(), pattern_images(), options(beta=0.0, epochs=1))


def test_a_loss_that_is_not_finite_names_the_layer():
    class Breaks(nn.Module):
        """The identity, whose third batch is the last it can bear."""

        calls = 0

        def forward(self, x):
            self.calls += self.training
            return x * float("inf") if self.calls > 3 else x

    model = low_rank_mlp()
    model[2] = Breaks()
    with pytest.raises(TrainingError, match=r"the loss is nan \(first in `2`\) in step 4 of 18"):
        fine_tune_(model, pattern_images(), options())


@pytest.mark.parametrize("save_seconds", [0.0, 3600.0])
def test_a_running_variance_that_overflows_is_the_trainings_fault_and_no_state_with_it_is_saved(save_seconds):
    class Overflows(nn.Module):
        """The identity, whose statistic overflows in its third batch: neither loss nor answers show it."""

        calls = 0

        def __init__(self):
            super().__init__()
            self.register_buffer("running_var", torch.ones(3))

        def forward(self, x):
            self.calls += self.training
            if self.calls == 3:
                self.running_var[1] = float("inf")
            return x

    model, states = low_rank_mlp(), []
    model[2] = Overflows()
    step = 3 if save_seconds == 0 else 6  # the end of the epoch
    words = rf"training has diverged: `2\.running_var` is not finite after step {step} of 18"
    with pytest.raises(TrainingError, match=words) as refused:
        fine_tune_(model, pattern_images(), options(save_seconds=save_seconds), save=states.append)
    assert "--lr" in refused.value.hint
    assert [state["step"] for state in states] == ([1, 2] if save_seconds == 0 else [])


def truncated_mlp(images):
    """Returns a network that has learnt the images, cut to half of its parameters."""
    dense = trained_mlp(images)
    plan = make_plan(dense, Budget(fraction=0.5), input_size=(3, 4, 4), include_first=True)
    return factorize_for_training(dense, plan)


RUINOUS = {"policy": Budget(fraction=0.5), "max_rank": None, "lr": 3.0, "held_out": 0.3, "epochs": 4}


def test_a_training_that_ruins_the_network_warns_at_once_and_keeps_the_truncation():
    images, said, steps = pattern_images(noise=0.3), [], []
    start = truncated_mlp(images)
    model = copy.deepcopy(start)
    result = fine_tune_(
        model,
        images,
        options(**RUINOUS),
        on_warning=lambda message: said.append((len(steps), message)),
        on_progress=steps.append,
    )
    assert tuple(message for _, message in said) == result.warnings
    risen, guessing, lost = said
    assert risen[0] == 1 + 5  # reports: before training, and the first mean of five steps
    assert "the loss has risen from" in risen[1]
    assert "by step 5 of 20: training diverges" in risen[1]
    assert "after epoch 1 " in guessing[1]
    assert "as guessing among 4 classes" in guessing[1]
    assert f"before training {100 * result.log[0].held_out_accuracy:.2f} %" in guessing[1]
    assert "the truncation itself is written" in lost[1]
    assert result.chosen_epoch == 0
    assert held_out_accuracy(model, images, options(**RUINOUS)) == result.log[0].held_out_accuracy
    layers = factored_layers(model)
    assert {name: layer.ranks for name, layer in layers.items()} == result.log[0].ranks
    assert all(
        relative_difference(layers[name].weight, one.weight) < 1e-5 for name, one in factored_layers(start).items()
    )
    assert torch.equal(model[6].weight, start[6].weight)


def test_a_ruinous_training_that_is_resumed_warns_of_the_same():
    images, states = pattern_images(noise=0.3), []
    start = truncated_mlp(images)
    settings = options(**RUINOUS, save_seconds=0.0)
    save = {"save": lambda state: states.append(written(state))}
    whole = copy.deepcopy(start)
    expected = fine_tune_(whole, images, settings, **save)
    assert len(expected.warnings) == 3
    for state in states[3::5]:
        said, model = [], copy.deepcopy(start)
        result = fine_tune_(model, images, settings, resume=state, on_warning=said.append)
        assert result == expected
        assert tuple(said) == expected.warnings[len(state["warnings"]) :]
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())


def test_the_truncation_that_is_kept_is_the_one_that_was_measured():
    # The training may begin with a cut: here to a largest rank.
    images = pattern_images(noise=0.3)
    model, settings = truncated_mlp(images), options(**RUINOUS | {"max_rank": 3})
    assert all(layer.ranks > (3,) for layer in factored_layers(model).values())
    result = fine_tune_(model, images, settings)
    assert result.chosen_epoch == 0
    assert set(result.log[0].ranks.values()) == {(3,)}
    assert {name: layer.ranks for name, layer in factored_layers(model).items()} == result.log[0].ranks
    assert held_out_accuracy(model, images, settings) == result.log[0].held_out_accuracy


def test_a_training_that_helps_warns_of_nothing():
    images, said = pattern_images(), []
    result = fine_tune_(low_rank_mlp(), images, options(**LONG), on_warning=said.append)
    assert (said, result.warnings) == ([], ())


def test_labels_that_the_network_does_not_have_are_refused():
    images = pattern_images()
    wrong = ImageSet(TensorImages(images.dataset.pixels, images.dataset.labels + 3), (), "wrong labels")
    with pytest.raises(DataError, match=r"label [4-6], the model 4 classes") as refused:
        fine_tune_(low_rank_mlp(), wrong, options())
    assert refused.value.hint


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"distill": 0.5}, "distillation"), ({"max_drop": 1.0, "policy": Budget(fraction=0.9)}, "drop")],
)
def test_what_is_measured_against_the_dense_network_needs_it(changes, words):
    with pytest.raises(OptionError, match=f"{words} needs the uncompressed model") as refused:
        fine_tune_(low_rank_mlp(), pattern_images(), options(**changes))
    assert "dense=" in refused.value.hint


def trained_mlp(images):
    dense = tiny_mlp()
    fine_tune_(dense, images, options(epochs=6))
    return dense


@pytest.mark.parametrize("min_rank", [1, 3])
def test_a_largest_drop_makes_the_network_as_small_as_it_can_bear(min_rank):
    images = pattern_images()
    dense = trained_mlp(images)
    model = low_rank_mlp(max_rank=None)
    changes = {"policy": Budget(fraction=0.999), "max_drop": 10.0, "min_rank": min_rank, "max_rank": None}
    result = fine_tune_(model, images, options(epochs=14, lr=2e-2, every_gradient=True, **changes), dense=dense)
    assert result.reached is True
    assert result.log[-1].held_out_accuracy >= held_out_accuracy(dense, images, options()) - 0.1
    adaptive = [record.parameters for record in result.log if not record.frozen]
    assert adaptive == sorted(adaptive, reverse=True)  # the task is easy
    assert adaptive[-1] < 0.7 * adaptive[0]
    assert all(rank >= min_rank for record in result.log for (rank,) in record.ranks.values())


def test_whether_the_largest_drop_was_kept_is_told():
    images = pattern_images()
    settings = options(policy=Budget(fraction=0.999), max_drop=0.5, epochs=2, lr=1e-6)
    # So small a learning rate teaches nothing.
    assert fine_tune_(low_rank_mlp(), images, settings, dense=trained_mlp(images)).reached is False
    assert fine_tune_(low_rank_mlp(), images, options(epochs=1)).reached is None


ADVERSARIES = {
    "fgsm-rs": {"adversarial": "fgsm-rs"},
    "pgd": {"adversarial": "pgd", "adversarial_steps": 3},
    "half": {"adversarial": "fgsm-rs", "adversarial_share": 0.5},
    "trades": {"adversarial": "pgd", "adversarial_steps": 2, "trades": 2.0},
}


@pytest.mark.parametrize("kind", ADVERSARIES)
def test_adversarial_training_makes_the_network_robust_and_chooses_by_that(kind):
    images = pattern_images(noise=0.05)
    robust = {}
    for name, changes in (("plain", {}), ("adversarial", ADVERSARIES[kind])):
        model = low_rank_mlp()
        settings = options(adversarial_eps=0.1, epochs=12, lr=3e-2, every_gradient=True, **changes)
        result = fine_tune_(model, images, settings)
        attacker = options(adversarial="pgd", adversarial_eps=0.1).adversary()
        robust[name] = attacker.accuracy(model, images, seed=3)
        records = [record.held_out_robust_accuracy for record in result.log]
        assert all((record is None) == (name == "plain") for record in records)
        if name == "adversarial":
            frozen = {r.epoch: r.held_out_robust_accuracy for r in result.log if r.frozen}
            best = max(frozen.values())
            assert result.chosen_epoch == max(epoch for epoch, value in frozen.items() if value == best)
    assert robust["adversarial"] > robust["plain"] + 0.05
