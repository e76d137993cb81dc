import dataclasses

import pytest
from networks import tiny_cnn

from lrcompress.errors import OptionError
from lrcompress.plan import UniformRank, check_plan, make_plan

SIZE = (3, 8, 8)
# Layers "3" (12×72 unfolded: up to rank 10) and "9" (16×12: up to rank 6) are factorised.
PLAN = dataclasses.replace(make_plan(tiny_cnn(), UniformRank(3), input_size=SIZE), source_sha256="ab")


def with_layer(name, /, **values):
    layers = tuple(dataclasses.replace(x, **values) if x.name == name else x for x in PLAN.layers)
    return dataclasses.replace(PLAN, layers=layers)


def check(plan, sha256="ab"):
    check_plan(plan, tiny_cnn(), input_size=SIZE, sha256=sha256)


def test_a_plan_fits_the_network_it_was_made_for():
    assert set(PLAN.factorized()) == {"3", "9"}
    check(PLAN)


@pytest.mark.parametrize(
    "values", [{"rank": 1}, {"rank": 10}, {"scheme": "dense", "rank": None, "reason": "by hand"}], ids=str
)
def test_a_plan_may_be_edited(values):
    check(with_layer("3", **values))


def test_the_classifier_may_be_planned():
    check(with_layer("11", scheme="matrix", rank=2))


BAD = {
    "another checkpoint": (PLAN, "cd", "another checkpoint: its SHA-256 differs"),
    "rank 0": (with_layer("3", rank=0), "ab", "`3` cannot have rank 0"),
    "a rank that adds parameters": (with_layer("3", rank=11), "ab", "`3` cannot have rank 11"),
    "no rank": (with_layer("3", rank=None), "ab", "`3` cannot have rank None"),
    "another shape": (with_layer("3", dense_shape=(12, 8, 1, 1)), "ab", "`3` with shape"),
    "a depthwise convolution": (with_layer("5", scheme="matrix", rank=1), "ab", "`5` cannot be factorised"),
    "a layer less": (dataclasses.replace(PLAN, layers=PLAN.layers[1:]), "ab", "differ in the layer `0`"),
    "a layer more": (with_layer("3", name="4"), "ab", "differ in the layer `3`"),
    "a layer twice": (dataclasses.replace(PLAN, layers=(*PLAN.layers, PLAN.layers[0])), "ab", "the layer `0`"),
}


@pytest.mark.parametrize(("plan", "sha256", "message"), BAD.values(), ids=BAD.keys())
def test_a_plan_that_does_not_fit_is_refused(plan, sha256, message):
    with pytest.raises(OptionError, match=message) as refused:
        check(plan, sha256)
    assert refused.value.hint
