import pytest
import torch
from torch import nn

from lrcompress.nn import replace_module_


def nested():
    return nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(3, 3), nn.ReLU()])}))


@pytest.mark.parametrize("name", ["0", "1.inner.0", "1.inner.1"])
def test_the_named_module_is_replaced_and_no_other(name):
    model, new = nested(), nn.Identity()
    others = {key: module for key, module in model.named_modules() if key != name}
    replace_module_(model, name, new)
    after = dict(model.named_modules())
    assert after.pop(name) is new
    assert after == others


def test_the_order_of_a_sequence_is_kept():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    replace_module_(model, "0", nn.Linear(2, 3))
    assert model(torch.ones(1, 2)).shape == (1, 4)
    assert list(dict(model.named_children())) == ["0", "1", "2"]


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_is_taken_over(training):
    model, new = nested().train(training), nn.Sequential(nn.Dropout()).train(not training)
    replace_module_(model, "0", new)
    assert new.training is training
    assert new[0].training is training


@pytest.mark.parametrize("name", ["2", "1.outer", "1.inner.7"])
def test_a_name_that_does_not_exist_is_refused(name):
    with pytest.raises(AttributeError):
        replace_module_(nested(), name, nn.Identity())
