import pytest
import torch
from torch import nn

from lrcompress.nn import meta_twin, replace_module_, twin


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


def tied():
    """A network with a parameter and a module that are used twice, a frozen parameter, and buffers of two types."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, nn.BatchNorm1d(4), second, first)
    second.bias.requires_grad_(False)
    return model.double()


def tensors(model):
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def test_a_twin_has_modules_of_its_own_and_shares_every_tensor():
    model = tied()
    copied = twin(model)
    assert not set(copied.modules()) & set(model.modules())
    assert [type(module) for module in copied.modules()] == [type(module) for module in model.modules()]
    assert [name for name, _ in tensors(copied)] == [name for name, _ in tensors(model)]
    assert all(ours is theirs for (_, ours), (_, theirs) in zip(tensors(copied), tensors(model), strict=True))
    x = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(copied.eval()(x), model.eval()(x))


def test_what_happens_to_the_modules_of_a_twin_does_not_happen_to_the_original():
    model = nested().train()
    copied = twin(model).eval()
    replace_module_(copied, "1.inner.1", nn.Identity())
    copied[0].note = "changed"
    assert isinstance(model[1]["inner"][1], nn.ReLU)
    assert not hasattr(model[0], "note")
    assert all(module.training for module in model.modules())


def test_a_twin_without_values_has_the_same_tensors_in_name_shape_and_type():
    model = tied()
    before = {name: (id(tensor), tensor.detach().clone()) for name, tensor in tensors(model)}
    empty = meta_twin(model)
    for (name, ours), (expected, theirs) in zip(tensors(empty), tensors(model), strict=True):
        assert name == expected
        assert ours.is_meta
        assert not theirs.is_meta
        assert (ours.shape, ours.dtype, ours.requires_grad) == (theirs.shape, theirs.dtype, theirs.requires_grad)
    # What is one tensor stays one, and so does what is one module.
    assert empty[0].weight is empty[2].weight
    assert empty[0] is empty[3]
    for name, tensor in tensors(model):
        assert before[name][0] == id(tensor)
        assert torch.equal(before[name][1], tensor)


def test_a_twin_without_values_finds_shapes():
    x = torch.zeros(3, 4, dtype=torch.float64, device="meta")
    y = meta_twin(tied()).eval()(x)
    assert y.is_meta
    assert (y.shape, y.dtype) == ((3, 4), torch.float64)
