import pytest
import torch
from networks import tiny_cnn
from torch import nn
from trainings import any_scheme, low_rank_cnn

from lrcompress.dlrt.diagnosis import find_not_finite


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
