import pytest
import torch
import torch.distributed as dist
from networks import pattern_images, relative_difference
from torch import nn
from trainings import low_rank_cnn, options, written
from two_processes import run_in_two

from lrcompress.dlrt import fine_tune_, world
from lrcompress.dlrt.distributed import agree, average_gradients_, broadcast_, total
from lrcompress.errors import TrainingError
from lrcompress.nn import factored_layers

# Not Adam, whose first steps are as long for a gradient that is only rounding.
SGD = {"optimizer": "sgd", "lr": 0.05, "every_gradient": True, "beta": 0.01, "tol": 0.3, "epochs": 2}
RUNS = {
    "one batch norm over both": SGD,
    "the default": {"every_gradient": True, "epochs": 2},
    "parts, and a last batch of five": {"accumulate": 3, "epochs": 2},
    "adversarial": {"adversarial": "fgsm-rs", "patience": 1, "epochs": 4},
    "one held-out image": {"held_out": 0.001, "adversarial": "fgsm-rs", "epochs": 1},
}


def train(name):
    count = 165 if name.startswith("parts") else 160
    model = low_rank_cnn()
    result = fine_tune_(model, pattern_images(count, size=8, noise=0.3), options(**RUNS[name]))
    return {
        "log": [record.to_json() for record in result.log],
        "chosen": result.chosen_epoch,
        "state": written(model.state_dict()),
        "weights": {name: layer.weight.detach() for name, layer in factored_layers(model).items()},
    }


def stop_one_and_go_on():
    """Only the second process is asked to stop, after its third step; both then go on from the first one's state."""
    images, settings, message, states, done = (
        pattern_images(size=8, noise=0.3),
        options(**RUNS["the default"]),
        "",
        [],
        [],
    )
    try:
        fine_tune_(
            low_rank_cnn(),
            images,
            settings,
            on_progress=lambda progress: done.append(progress.step),
            save=lambda state: states.append(written(state)),
            is_stopped=lambda: world()[0] == 1 and done[-1] == 3,
        )
    except TrainingError as error:
        message = error.message
    model = low_rank_cnn()
    result = fine_tune_(model, images, settings, resume=agree(states[-1]))
    return message, [record.to_json() for record in result.log], model.state_dict()


def diverge_in_one():
    """Only the second process meets a loss that is not finite."""

    class Breaks(nn.Module):
        def forward(self, x):
            return x * float("inf") if self.training and world()[0] == 1 else x

    model = low_rank_cnn()
    model[10] = Breaks()
    try:
        fine_tune_(model, pattern_images(size=8), options())
    except TrainingError as error:
        return error.message
    return "nothing noticed"


def in_two_processes():
    rank, processes = world()
    tensors = [torch.full((2, 3), 1.0 + rank), torch.full((4,), 10.0 * rank).double(), torch.tensor(3.0 + rank)]
    averaged, sent = [nn.Parameter(tensor.clone()) for tensor in tensors], [tensor.clone() for tensor in tensors]
    # Of the fourth only one process has a gradient, of the fifth none.
    averaged += [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    for parameter in averaged[: 4 - rank]:
        parameter.grad = parameter.detach().clone()
    average_gradients_(averaged)
    broadcast_([*sent, torch.tensor([rank])])
    values = {
        "world": (rank, processes),
        "averaged": [parameter.grad for parameter in averaged],
        "sent": sent,
        "agreed": agree({"ranks": (rank, 5)}),
        "total": total(0.5 + rank, torch.device("cpu")),
        "backend": dist.get_backend(),
        "stopped": stop_one_and_go_on(),
        "diverged": diverge_in_one(),
    }
    return values | {name: train(name) for name in RUNS}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_in_two(__file__, "in_two_processes", tmp_path_factory.mktemp("two"))


def test_values_are_averaged_sent_and_agreed_on(results):
    assert [result["world"] for result in results] == [(0, 2), (1, 2)]
    for result in results:
        assert result["backend"] == "gloo"
        first, second, third, of_one, of_none = result["averaged"]
        assert torch.equal(first, torch.full((2, 3), 1.5))
        assert torch.equal(second, torch.full((4,), 5.0).double())
        assert float(third) == 3.5
        assert of_one.tolist() == [0.5, 0.5]
        assert of_none is None
        assert [float(tensor.sum()) for tensor in result["sent"]] == [6.0, 0.0, 3.0]
        assert result["agreed"] == {"ranks": (0, 5)}
        assert result["total"] == 2.0


def test_alone_nothing_is_changed():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average_gradients_([parameter])
    assert parameter.grad is None
    broadcast_([parameter.detach()])
    assert parameter.tolist() == [1, 2]
    assert (world(), agree("x"), total(0.25, torch.device("cpu"))) == ((0, 1), "x", 0.25)


@pytest.mark.parametrize("name", RUNS)
def test_both_processes_end_with_the_same_bytes_and_the_same_log(results, name):
    one, other = (result[name] for result in results)
    assert one["log"] == other["log"]
    assert one["chosen"] == other["chosen"]
    assert one["state"].keys() == other["state"].keys()
    assert all(torch.equal(value, other["state"][key]) for key, value in one["state"].items())


def test_two_processes_with_half_a_batch_each_are_one_with_the_whole(results):
    name = "one batch norm over both"
    expected, found = train(name), results[0][name]
    assert [record["ranks"] for record in found["log"]] == [record["ranks"] for record in expected["log"]]
    for one, other in zip(found["log"], expected["log"], strict=True):
        assert (one["loss"] or 0) == pytest.approx(other["loss"] or 0, rel=1e-3)
        assert one["held_out_accuracy"] == pytest.approx(other["held_out_accuracy"], abs=1 / 16)
    for key, value in expected["weights"].items():
        assert relative_difference(found["weights"][key], value) < 1e-2, key
    statistics = expected["state"]["1.running_mean"]
    assert torch.allclose(found["state"]["1.running_mean"], statistics, rtol=1e-3, atol=1e-4)


def test_one_process_that_is_asked_to_stop_stops_both_and_both_go_on_to_the_same_bytes(results):
    for result in results:
        message, log, weights = result["stopped"]
        assert message == "stopped in step 3 of 12"
        assert log == result["the default"]["log"]
        assert all(torch.equal(value, weights[key]) for key, value in result["the default"]["state"].items())


def test_what_one_process_cannot_go_on_from_ends_both(results):
    assert all("the loss is " in result["diverged"] and "in step 1 of 18" in result["diverged"] for result in results)
