import pytest
import torch
from networks import tiny_cnn
from torch import nn

from lrcompress.checkpoint.match import describe_mismatch, match_by_order, matches
from lrcompress.errors import ArchitectureError


def test_a_networks_own_tensors_match():
    model = tiny_cnn()
    assert matches(model, model.state_dict())


def test_batch_counters_may_be_missing():
    model = tiny_cnn()
    tensors = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert len(tensors) < len(model.state_dict())
    assert matches(model, tensors)


CHANGES = {
    "one missing": lambda tensors: tensors.pop("9.bias"),
    "one more": lambda tensors: tensors.update({"12.bias": torch.ones(3)}),
    "another shape": lambda tensors: tensors.update({"9.bias": torch.ones(3)}),
    "another dimension": lambda tensors: tensors.update({"9.bias": torch.ones(16, 1)}),
    "another name": lambda tensors: tensors.update({"nine.bias": tensors.pop("9.bias")}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_one_difference_is_enough_not_to_match(change):
    model = tiny_cnn()
    tensors = dict(model.state_dict())
    change(tensors)
    assert not matches(model, tensors)


def test_differences_are_listed_with_shapes_and_only_the_first_few():
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(6)), nn.Linear(2, 3))
    tensors = {"6.weight": torch.ones(4, 2), "6.bias": torch.ones(3), "extra": torch.ones(1)}
    assert describe_mismatch(model, tensors) == (
        "6 missing (0.weight, 1.weight, 2.weight, 3.weight, …); 1 unexpected (extra); "
        "1 mis-shaped (6.weight (4, 2) instead of (3, 2))"
    )


def test_renamed_tensors_match_by_their_order():
    model = tiny_cnn()
    renamed = {f"tensor{index}": value for index, value in enumerate(model.state_dict().values())}
    counters = [key for key, name in zip(renamed, model.state_dict(), strict=True) if "num_batches" in name]
    renamed = {(f"{key}.num_batches_tracked" if key in counters else key): value for key, value in renamed.items()}
    matched = match_by_order(model, renamed, "file")
    expected = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert list(matched) == list(expected)
    assert all(matched[key] is not None and torch.equal(matched[key], value) for key, value in expected.items())


def test_another_number_of_tensors_does_not_match_by_order():
    with pytest.raises(ArchitectureError, match=r"`file` has 1 tensors, the architecture 2"):
        match_by_order(nn.Linear(2, 3), {"w": torch.ones(3, 2)}, "file")


def test_another_shape_does_not_match_by_order_and_is_named():
    tensors = {"w": torch.ones(3, 2), "b": torch.ones(4)}
    with pytest.raises(ArchitectureError, match=r"tensor 1 of `file` is `b` \(4,\), but .* `bias` \(3,\)") as refused:
        match_by_order(nn.Linear(2, 3), tensors, "file")
    assert refused.value.hint
