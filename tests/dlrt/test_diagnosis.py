import pytest
import torch
from networks import tiny_cnn
from torch import nn
from trainings import any_scheme, low_rank_cnn

from lrcompress.dlrt.diagnosis import LossWatch, find_not_finite, find_not_finite_value, is_guessing


def images():
    return torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0", "3", "6", "9", "11"])
@pytest.mark.parametrize("make", [tiny_cnn, low_rank_cnn], ids=["dense", "low-rank"])
def test_the_first_layer_whose_output_is_not_finite_is_named(make, name, value):
    model = make()
    with torch.no_grad():
        model.get_submodule(name).bias[0] = value
    assert find_not_finite(model, images()) == f" (first in `{name}`)"


def test_a_part_of_a_split_layer_is_named():
    _, model = any_scheme("split")
    with torch.no_grad():
        model.get_submodule("4.qkv.parts.1").S[0, 0, 0] = float("nan")
    assert find_not_finite(model, images()) == " (first in `4.qkv.parts.1`)"


def test_nothing_is_named_where_all_is_finite():
    assert find_not_finite(low_rank_cnn(), images()) == ""


class Tuples(nn.Module):
    def forward(self, x):
        return x, x * float("nan")


def test_outputs_that_are_no_tensors_are_passed_over():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.log = Tuples(), nn.Softmax(dim=1)

        def forward(self, x):
            return self.log(self.pair(x)[1])

    assert find_not_finite(Network(), torch.rand(2, 3)) == " (first in `log`)"


def test_the_model_is_left_as_it_was():
    model = low_rank_cnn().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    find_not_finite(model, images())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, statistics)
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    model(images())
    handle.remove()
    assert len(calls) == 1
    assert len(torch.nn.modules.module._global_forward_hooks) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_statistics_that_are_not_finite_are_named(value):
    model = low_rank_cnn()
    assert find_not_finite_value(model) is None
    model[1].running_var[2] = value
    assert find_not_finite_value(model) == "1.running_var"


@pytest.mark.parametrize(
    ("accuracy", "images", "classes", "expected"),
    [
        (0.1, 700, 10, True),
        (0.0, 700, 10, True),
        (0.122, 700, 10, True),  # 0.1 + 2·√(0.09 / 700) = 0.1227
        (0.124, 700, 10, False),
        (0.5, 10_000, 2, True),
        (0.52, 10_000, 2, False),
        (0.05, 20, 1000, False),
    ],
)
def test_guessing_is_what_two_standard_errors_leave_open(accuracy, images, classes, expected):
    assert is_guessing(accuracy, images=images, classes=classes) is expected


def watched(losses, *, classes=10):
    watch = LossWatch(classes)
    return [said for step, loss in enumerate(losses, 1) if (said := watch.add(loss, step=step, steps=len(losses)))]


def test_a_loss_that_rises_to_many_times_the_first_is_told_once_with_its_figures():
    said = watched([0.3, 0.4, 0.5, 1.0, 1.0, 5.0, 20.0, 40.0, 60.0])
    assert len(said) == 1
    assert "from 0.3 to 5.5 by step 7 of 9" in said[0]  # (0.5 + 1 + 1 + 5 + 20) / 5
    assert "--lr" in said[0]


@pytest.mark.parametrize(
    "losses",
    [[2.0, 1.0, 0.5, 0.2], [0.01] + [0.5] * 20, [2.3] * 5 + [40.0] + [2.3] * 10, [3.0] * 5 + [12.0] * 9],
    ids=["falls", "far below that of guessing", "one odd batch", "not so many times"],
)
def test_an_ordinary_loss_is_not_told(losses):
    assert watched(losses) == []


def test_a_loss_watch_goes_on_from_its_state():
    losses = [0.3, 0.4, 0.5, 1.0, 1.0, 5.0, 20.0, 40.0]
    for stop in range(len(losses)):
        first, second = LossWatch(10), LossWatch(10)
        for step, loss in enumerate(losses[:stop]):
            first.add(loss, step=step, steps=9)
        second.load_state_dict(first.state_dict())
        for step, loss in enumerate(losses[stop:]):
            assert second.add(loss, step=step, steps=9) == first.add(loss, step=step, steps=9)
