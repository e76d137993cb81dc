import hashlib
import json
import struct

import pytest
import torch
from networks import tiny_cnn
from safetensors import safe_open
from safetensors.torch import load
from torch import nn

from lrcompress.artifact import round_weights_
from lrcompress.artifact.tensors import digest_tensors, iterate_file, stored_tensors


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


def serialize(tensors, metadata):
    return b"".join(iterate_file(tensors, metadata))


def test_the_bytes_do_not_depend_on_the_order_of_tensors_and_metadata():
    one, two = torch.ones(3), torch.zeros(2, 2).half()
    first = serialize({"a": one, "b": two}, {"format": "pt", "lrcompress": "{}", "x": "y"})
    second = serialize({"b": two, "a": one}, {"x": "y", "lrcompress": "{}", "format": "pt"})
    assert first == second
    assert torch.equal(load(first)["b"], two)


# One of each type that networks have, with shapes that would not keep the next one aligned.
KINDS = {
    "h": torch.randn(3).half(),
    "d": torch.randn(3, 1, dtype=torch.float64),
    "flags": torch.tensor([True, False, True]),
    "f": torch.randn(5, 3).t(),
    "count": torch.tensor(7),
    "b": torch.randn(1).bfloat16(),
    "i": torch.arange(3, dtype=torch.int32),
    "s": torch.arange(5, dtype=torch.int16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "small": torch.arange(3, dtype=torch.int8),
    "empty": torch.zeros(0, 4),
}


def test_every_type_is_read_back_by_safetensors_and_aligned(tmp_path):
    content = serialize({name: value.contiguous() for name, value in KINDS.items()}, {"format": "pt"})
    found = load(content)
    assert found.keys() == KINDS.keys()
    for name, value in KINDS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    for name, value in KINDS.items():
        assert header[name]["data_offsets"][0] % value.element_size() == 0
    (tmp_path / "a.safetensors").write_bytes(content)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_pieces_are_views_of_the_tensors():
    big = torch.zeros(1000)
    header, piece = iterate_file({"big": big}, {})
    big[3] = 1.0
    assert len(header) < 100
    assert torch.frombuffer(piece, dtype=torch.float32)[3] == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_buffers_that_are_not_stored_are_not_rounded(dtype):
    model = nn.Linear(2, 2)
    model.register_buffer("stored", torch.tensor([0.1]))
    model.register_buffer("made_anew", torch.tensor([0.1]), persistent=False)
    round_weights_(model, dtype)
    assert model.made_anew.item() == torch.tensor(0.1).item()
    assert model.stored.item() == torch.tensor(0.1).to(getattr(torch, dtype)).item() != model.made_anew.item()
