import dataclasses

import pytest
import torch
from artifacts import family
from networks import tiny_cnn
from timm.layers import ScaledStdConv2d
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.factorize import factorize
from lrcompress.measure import count_parameters
from lrcompress.plan import Decomposer, UniformRank, check_plan, make_plan

SIZE = (3, 8, 8)
MATRIX = Decomposer(wanted="matrix")
# Layers "3" (12×72 unfolded: up to rank 10), "6" (3 groups of 4×36: up to rank 3) and "9" (16×12: up to rank 6).
PLAN = make_plan(tiny_cnn(), UniformRank(3), input_size=SIZE, decomposer=MATRIX)
PLAN = dataclasses.replace(PLAN, source_sha256="ab")


def with_layer(name, /, plan=PLAN, **values):
    layers = tuple(dataclasses.replace(x, **values) if x.name == name else x for x in plan.layers)
    return dataclasses.replace(plan, layers=layers)


def check(plan, sha256="ab", *, model=None, size=SIZE):
    return check_plan(plan, model or tiny_cnn(), input_size=size, sha256=sha256)


def test_a_plan_fits_the_network_it_was_made_for():
    assert set(PLAN.factorized()) == {"3", "6", "9"}
    assert check(PLAN) == PLAN


EDITS = {
    "rank 1": ({"ranks": (1,)}, 12 + 72),
    "the largest": ({"ranks": (10,)}, 10 * (12 + 72)),
    "spatial": ({"scheme": "spatial", "ranks": (5,)}, 5 * (8 * 3 + 12 * 3)),
    "tucker2": ({"scheme": "tucker2", "ranks": (4, 3)}, 3 * 8 + 9 * 3 * 4 + 4 * 12),
    "tucker2, all outputs": ({"scheme": "tucker2", "ranks": (12, 3)}, 3 * 8 + 9 * 3 * 12),
    "dense": ({"scheme": "dense", "ranks": (), "reason": "by hand"}, None),
}


@pytest.mark.parametrize(("values", "parameters"), EDITS.values(), ids=EDITS.keys())
def test_a_plan_may_be_edited_and_its_parameters_are_counted_anew(values, parameters):
    checked = check(with_layer("3", parameters=7, **values))
    layer = next(layer for layer in checked.layers if layer.name == "3")
    assert layer.parameters == parameters
    model = tiny_cnn()
    assert count_parameters(factorize(model, checked)) == count_parameters(model) - checked.removed_parameters()


def test_the_classifier_may_be_planned():
    checked = check(with_layer("11", scheme="matrix", ranks=(2,)))
    assert checked.factorized()["11"].parameters == 2 * (4 + 16)


def test_a_fused_projection_takes_three_ranks():
    model, _, size = family("beit")
    plan = make_plan(model, UniformRank(3), input_size=size, decomposer=Decomposer(wanted="matrix"))
    edited = with_layer("blocks.0.attn.qkv", plan, scheme="split", ranks=(1, 2, 8))
    checked = check(edited, "", model=model, size=size)
    assert checked.factorized()["blocks.0.attn.qkv"].parameters == (1 + 2 + 8) * (24 + 24)
    with pytest.raises(OptionError, match=r"cannot have rank 1, 2, 25"):
        check(with_layer("blocks.0.attn.qkv", plan, scheme="split", ranks=(1, 2, 25)), "", model=model, size=size)


BAD = {
    "another checkpoint": (PLAN, "cd", "another checkpoint: its SHA-256 differs"),
    "rank 0": (with_layer("3", ranks=(0,)), "ab", "`3` cannot have rank 0"),
    "a rank below 0": (with_layer("3", ranks=(-2,)), "ab", "`3` cannot have rank -2"),
    "a rank that adds parameters": (with_layer("3", ranks=(11,)), "ab", "`3` cannot have rank 11"),
    "a rank that there is not": (with_layer("3", ranks=(10**30,)), "ab", f"`3` cannot have rank {10**30}"),
    "a rank of a group": (with_layer("6", ranks=(5,)), "ab", "`6` cannot have rank 5"),
    "one mode of two": (with_layer("3", scheme="tucker2", ranks=(4, 9)), "ab", "`3` cannot have rank 4, 9"),
    "no rank": (with_layer("3", ranks=()), "ab", "`3` has the ranks none"),
    "two ranks of a matrix": (with_layer("3", ranks=(2, 2)), "ab", "`3` has the ranks 2, 2"),
    "one rank of tucker2": (with_layer("3", scheme="tucker2"), "ab", "`3` has the ranks 3"),
    "a linear layer": (with_layer("9", scheme="spatial"), "ab", "`9` cannot have the scheme spatial"),
    "groups": (with_layer("6", scheme="tucker2", ranks=(2, 2)), "ab", "`6` cannot have the scheme tucker2"),
    "no projection": (with_layer("9", scheme="split", ranks=(1, 1, 1)), "ab", "`9` cannot have the scheme split"),
    "no such scheme": (with_layer("9", scheme="cp"), "ab", "no scheme named `cp`"),
    "another shape": (with_layer("3", dense_shape=(12, 8, 1, 1)), "ab", "`3` with shape"),
    "a depthwise convolution": (with_layer("5", scheme="matrix", ranks=(1,)), "ab", "`5` cannot be factorised"),
    "a layer less": (dataclasses.replace(PLAN, layers=PLAN.layers[1:]), "ab", "differ in the layer `0`"),
    "a layer more": (with_layer("3", name="4"), "ab", "differ in the layer `3`"),
    "a layer twice": (dataclasses.replace(PLAN, layers=(*PLAN.layers, PLAN.layers[0])), "ab", "the layer `0`"),
}


@pytest.mark.parametrize(("plan", "sha256", "message"), BAD.values(), ids=BAD.keys())
def test_a_plan_that_does_not_fit_is_refused(plan, sha256, message):
    with pytest.raises(OptionError, match=message) as refused:
        check(plan, sha256)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("layer", "values", "hint"),
    [
        ("3", {"ranks": (11,)}, "ranks up to about 10 "),
        ("9", {"ranks": (7,)}, "ranks up to about 6 "),
        ("3", {"ranks": (2, 2)}, "the scheme matrix takes 1 of them"),
        ("3", {"scheme": "tucker2", "ranks": (2,)}, "the scheme tucker2 takes 2 of them"),
    ],
)
def test_the_hint_says_what_is_possible(layer, values, hint):
    with pytest.raises(OptionError) as refused:
        check(with_layer(layer, **values))
    assert hint in refused.value.hint


def test_where_no_rank_removes_parameters_the_hint_says_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 1), nn.Linear(1, 3)).eval()
    plan = make_plan(model, UniformRank(1), input_size=(3, 2, 2))
    edited = with_layer("2", plan, scheme="matrix", ranks=(1,))
    with pytest.raises(OptionError, match="`2` cannot have rank 1") as refused:
        check(edited, "", model=model, size=(3, 2, 2))
    assert refused.value.hint == "no rank removes parameters: plan it as dense"


def test_a_plan_that_counts_on_the_gain_of_a_scaled_convolution_fits():
    """Rank one of 2×2 has four weights, as many as the layer, whose gain of two goes too."""
    scaled = ScaledStdConv2d(2, 2, 1)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), scaled, nn.Flatten(), nn.Linear(8, 3)).eval()
    plan = make_plan(model, UniformRank(1), input_size=(3, 2, 2))
    assert plan.factorized().keys() == {"1"}
    assert plan.removed_parameters() == 2
    assert check(plan, "", model=model, size=(3, 2, 2)) == plan


def test_the_network_is_not_changed():
    model = tiny_cnn()
    names = [name for name, _ in model.named_modules()]
    check(PLAN, model=model)
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(model[3].weight, tiny_cnn()[3].weight)
