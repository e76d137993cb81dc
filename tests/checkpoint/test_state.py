import argparse
import collections
from itertools import islice

import pytest
import torch

from lrcompress.checkpoint.state import check_finite, find_state_dict, prefix_variants
from lrcompress.errors import CheckpointError


def state(value):
    return {"fc.weight": torch.full((2, 3), float(value)), "fc.bias": torch.full((2,), float(value))}


def value_of(found):
    return float(found.tensors["fc.bias"][0])


# timm's order: each of these is taken before all that follow.
ORDER = ["state_dict_ema", "model_ema", "state_dict", "model"]


@pytest.mark.parametrize("first", range(4))
def test_wrappers_are_taken_in_timms_order(first):
    content = {name: state(index) for index, name in reversed(list(enumerate(ORDER))) if index >= first}
    found = find_state_dict({"epoch": 3, **content}, "file")
    assert found.wrapper == ORDER[first]
    assert value_of(found) == first


def test_a_bare_state_dict_is_taken_as_it_is():
    content = collections.OrderedDict(state(5))
    found = find_state_dict(content, "file")
    assert (found.wrapper, found.architecture) == ("", None)
    assert list(found.tensors) == ["fc.weight", "fc.bias"]


def test_an_empty_wrapper_is_passed_over():
    assert (
        find_state_dict({"state_dict_ema": None, "model_ema": {}, "state_dict": state(1)}, "file").wrapper
        == "state_dict"
    )


def test_a_tensor_named_like_a_wrapper_does_not_hide_the_state_dict():
    assert find_state_dict({"model": torch.ones(2), "head": torch.ones(3)}, "file").wrapper == ""


def test_another_key_is_taken_where_it_is_named():
    found = find_state_dict({"state_dict": state(1), "teacher": state(2)}, "file", wrapper="teacher")
    assert (found.wrapper, value_of(found)) == ("teacher", 2)


def test_a_named_key_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(CheckpointError, match="no state dict under `student`, only under: state_dict, teacher"):
        find_state_dict({"epoch": 1, "state_dict": state(1), "teacher": state(2)}, "file", wrapper="student")


def test_a_state_dict_under_an_unknown_key_is_hinted_at():
    with pytest.raises(CheckpointError, match="holds no state dict; its keys are: epoch, net") as refused:
        find_state_dict({"epoch": 1, "net": state(1)}, "file")
    assert refused.value.hint == "--weights-key net"


@pytest.mark.parametrize("content", [[1, 2], "text", 3, None, torch.ones(3)], ids=lambda value: type(value).__name__)
def test_what_is_no_dictionary_is_refused_with_its_type(content):
    with pytest.raises(CheckpointError, match=f"holds a {type(content).__name__}, not a state dict"):
        find_state_dict(content, "file")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"losses": {"train": 0.5}}])
def test_a_dictionary_without_tensors_is_refused(content):
    with pytest.raises(CheckpointError, match="no state dict"):
        find_state_dict(content, "file")


def test_entries_that_are_no_tensors_are_left_out():
    found = find_state_dict({**state(1), "fc._extra_state": None}, "file")
    assert list(found.tensors) == ["fc.weight", "fc.bias"]


def test_the_counter_of_averaged_models_is_no_weight():
    averaged = {"n_averaged": torch.tensor(4), **{f"module.{key}": value for key, value in state(1).items()}}
    found = find_state_dict({"model_ema": averaged}, "file")
    assert list(found.tensors) == ["module.fc.weight", "module.fc.bias"]


def test_no_tensors_have_no_prefix():
    assert list(islice(prefix_variants({}), 10)) == [("", {})]


NAMED = {
    "arch": {"arch": "resnet18"},
    "namespace of timm": {"args": argparse.Namespace(model="resnet18")},
    "namespace of the PyTorch example": {"args": argparse.Namespace(arch="resnet18")},
    "dictionary": {"args": {"model": "resnet18"}},
    "both": {"arch": "resnet18", "args": argparse.Namespace(model="resnet50")},
}


@pytest.mark.parametrize("said", NAMED.values(), ids=NAMED.keys())
def test_the_file_names_its_architecture(said):
    assert find_state_dict({"state_dict": state(1), **said}, "file").architecture == "resnet18"


@pytest.mark.parametrize("said", [{}, {"arch": None}, {"arch": ""}, {"arch": 18}, {"args": None}, {"args": [1]}])
def test_no_name_is_no_name(said):
    assert find_state_dict({"state_dict": state(1), **said}, "file").architecture is None


def test_the_file_gives_model_arguments_and_preprocessing():
    args = argparse.Namespace(
        model="x", model_kwargs={"drop": 0.1}, num_classes=7, in_chans=1, mean=[0.5], std=[0.25], img_size=48
    )
    found = find_state_dict({"state_dict": state(1), "args": args}, "file")
    assert found.arguments == {"drop": 0.1, "num_classes": 7, "in_chans": 1}
    assert tuple(found.preprocessing["mean"]) == (0.5,)
    assert tuple(found.preprocessing["input_size"]) == (1, 48, 48)


PREFIXED = {
    "none": ("", [""]),
    "data parallel": ("module.", ["", "module."]),
    "compiled": ("_orig_mod.", ["", "_orig_mod."]),
    "lightning": ("model.", ["", "model."]),
    "compiled, then parallel": ("module._orig_mod.", ["", "module.", "module._orig_mod."]),
    "foreign": ("net.", [""]),
}


@pytest.mark.parametrize(("prefix", "expected"), PREFIXED.values(), ids=PREFIXED.keys())
def test_wrappers_prefixes_are_stripped_one_by_one(prefix, expected):
    variants = list(islice(prefix_variants({prefix + key: value for key, value in state(1).items()}), 10))
    assert [removed for removed, _ in variants] == expected
    for removed, tensors in variants:
        assert list(tensors) == [prefix.removeprefix(removed) + key for key in state(1)]


def test_a_prefix_that_not_all_tensors_have_stays():
    variants = list(prefix_variants({"model.weight": torch.ones(1), "head.weight": torch.ones(1)}))
    assert [removed for removed, _ in variants] == [""]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_refused_with_the_tensors_name(value, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in state(1).items()}
    tensors["fc.bias"][1] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in `fc\.bias`$"):
        check_finite(tensors, "file")
    tensors["fc.weight"][0, 0] = value
    with pytest.raises(CheckpointError, match=r"in `fc\.weight` and 1 more$"):
        check_finite(tensors, "file")


def test_finite_values_and_counters_pass():
    check_finite({**state(3e38), "count": torch.tensor(2**62)}, "file")
