import dataclasses

import pytest

from lrcompress.dlrt import DlrtOptions
from lrcompress.errors import OptionError

REFUSED = [
    ("tol", 0.0, "--tol"),
    ("tol", 1.0, "--tol"),
    ("tol", -0.1, "--tol"),
    ("tol", float("nan"), "--tol"),
    ("epochs", 0, "--epochs"),
    ("beta", -0.1, "--beta"),
    ("beta", float("nan"), "--beta"),
    ("beta", float("inf"), "--beta"),
    ("lr", 0.0, "--lr"),
    ("lr", float("nan"), "--lr"),
    ("weight_decay", -1.0, "--weight-decay"),
    ("weight_decay", float("nan"), "--weight-decay"),
    ("coefficient_steps", 0, "--coefficient-steps"),
    ("batch_size", 1, "--batch-size"),
    ("frozen_fraction", 0.0, "--frozen-fraction"),
    ("frozen_fraction", 1.1, "--frozen-fraction"),
    ("min_rank", 0, "--min-rank"),
    ("held_out", 0.0, "--held-out"),
    ("held_out", 1.0, "--held-out"),
    ("distill", -0.1, "--distill"),
    ("distill", 1.1, "--distill"),
    ("crop", -1, "--crop"),
]
ALLOWED = [("frozen_fraction", 1.0), ("beta", 0.0), ("coefficient_steps", 1), ("batch_size", 2), ("crop", 0)]


@pytest.mark.parametrize(("name", "value", "option"), REFUSED)
def test_a_value_out_of_range_is_refused_with_the_option_and_the_value(name, value, option):
    with pytest.raises(OptionError) as refused:
        DlrtOptions(**({"tol": 0.1, "epochs": 1} | {name: value}))
    assert refused.value.message.startswith(f"{option} must be ")
    assert refused.value.message.endswith(f"got {value}")
    assert refused.value.hint


@pytest.mark.parametrize(("name", "value"), ALLOWED)
def test_the_ends_of_the_ranges_are_allowed(name, value):
    assert getattr(DlrtOptions(tol=0.1, epochs=1, **{name: value}), name) == value


@pytest.mark.parametrize(("smallest", "largest", "allowed"), [(4, 3, False), (4, 4, True), (4, None, True)])
def test_the_largest_rank_is_at_least_the_smallest(smallest, largest, allowed):
    if allowed:
        assert DlrtOptions(tol=0.1, epochs=1, min_rank=smallest, max_rank=largest).max_rank == largest
    else:
        with pytest.raises(OptionError, match="--max-rank"):
            DlrtOptions(tol=0.1, epochs=1, min_rank=smallest, max_rank=largest)


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DlrtOptions(tol=0.1, epochs=1).lr = 1.0
