import hashlib
import json

import pytest
import torch
from networks import tiny_cnn
from safetensors.torch import load
from torch import nn

from lrcompress.artifact import round_weights_
from lrcompress.artifact.tensors import digest_tensors, serialize, stored_tensors


def test_tensors_are_stored_sorted_contiguous_and_detached():
    model = tiny_cnn().to(memory_format=torch.channels_last)
    assert not model[3].weight.is_contiguous()
    tensors, shared = stored_tensors(model, "float32")
    assert list(tensors) == sorted(model.state_dict())
    assert shared == {}
    for name, value in tensors.items():
        assert value.is_contiguous()
        assert not value.requires_grad
        assert torch.equal(value, model.state_dict()[name])


def test_a_shared_tensor_is_stored_under_its_first_name():
    model = nn.ModuleDict({"b": nn.Linear(3, 3, bias=False), "a": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    tensors, shared = stored_tensors(model, "float32")
    assert list(tensors) == ["a.weight"]
    assert shared == {"b.weight": "a.weight"}


def test_equal_but_separate_and_empty_tensors_are_not_shared():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].load_state_dict(model["a"].state_dict())
    model.register_buffer("empty_one", torch.zeros(0))
    model.register_buffer("empty_two", torch.zeros(0))
    assert stored_tensors(model, "float32")[1] == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_keeps_float32_and_is_what_storing_does(dtype):
    model = tiny_cnn()
    expected = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    round_weights_(model, dtype)
    for name, value in model.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, expected[name].to(value.dtype))
    tensors, _ = stored_tensors(model, dtype)
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())


def test_rounding_to_float32_changes_nothing():
    model, other = tiny_cnn(), tiny_cnn()
    round_weights_(model, "float32")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_digest_is_the_sha256_of_names_types_shapes_and_bytes():
    tensors = {"b": torch.tensor(3), "a": torch.tensor([[1.0, 2.0]])}
    digest = hashlib.sha256()
    digest.update(json.dumps(["a", "torch.float32", [1, 2]]).encode() + bytes.fromhex("0000803f00000040"))
    digest.update(json.dumps(["b", "torch.int64", []]).encode() + bytes([3, 0, 0, 0, 0, 0, 0, 0]))
    assert digest_tensors(tensors) == digest.hexdigest()


OTHERS = {
    "another value": {"a": torch.tensor([1.0, 3.0])},
    "minus zero": {"a": torch.tensor([1.0, 2.0]), "z": torch.tensor(-0.0)},
    "another name": {"b": torch.tensor([1.0, 2.0])},
    "another shape": {"a": torch.tensor([[1.0, 2.0]])},
    "another type": {"a": torch.tensor([1.0, 2.0]).view(torch.int32)},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_any_change_changes_the_digest(other):
    one = {"a": torch.tensor([1.0, 2.0])}
    if "z" in other:
        one["z"] = torch.tensor(0.0)
    assert digest_tensors(one) != digest_tensors(other)


def test_the_bytes_do_not_depend_on_the_order_of_tensors_and_metadata():
    one, two = torch.ones(3), torch.zeros(2, 2).half()
    first = serialize({"a": one, "b": two}, {"format": "pt", "lrcompress": "{}", "x": "y"})
    second = serialize({"b": two, "a": one}, {"x": "y", "lrcompress": "{}", "format": "pt"})
    assert first == second
    assert torch.equal(load(first)["b"], two)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_buffers_that_are_not_stored_are_not_rounded(dtype):
    model = nn.Linear(2, 2)
    model.register_buffer("stored", torch.tensor([0.1]))
    model.register_buffer("made_anew", torch.tensor([0.1]), persistent=False)
    round_weights_(model, dtype)
    assert model.made_anew.item() == torch.tensor(0.1).item()
    assert model.stored.item() == torch.tensor(0.1).to(getattr(torch, dtype)).item() != model.made_anew.item()
