import dataclasses
import json

import pytest

from lrcompress.errors import OptionError
from lrcompress.plan import CompressionPlan, LayerPlan, LayerRecord

LOW = LayerPlan("stem.0", "Conv2d", (8, 3, 3, 3), "matrix", rank=3, relative_error=0.04)
DENSE = LayerPlan("head", "Linear", (10, 8), "dense", reason="the classifier")
PLAN = CompressionPlan({"name": "tolerance", "tol": 0.1}, (LOW, DENSE), "ab" * 32)
RECORD = LayerRecord("stem.0", "Conv2d", (8, 3, 3, 3), "matrix", rank=3, relative_error=0.0, sigma_max=2.0, kappa=1.5)


def through_json(values):
    return json.loads(json.dumps(values))


def test_a_plan_survives_json():
    assert CompressionPlan.from_json(through_json(PLAN.to_json())) == PLAN


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_a_plan_of_another_version_is_refused(version):
    with pytest.raises(OptionError, match=f"the plan has version {version}, this program reads 1") as refused:
        CompressionPlan.from_json(PLAN.to_json() | {"version": version})
    assert refused.value.hint


def without_layers():
    values = PLAN.to_json()
    del values["layers"]
    return values


@pytest.mark.parametrize(
    "values",
    [without_layers(), PLAN.to_json() | {"layers": None}, PLAN.to_json() | {"layers": [{"name": "x"}]}],
    ids=["no layers", "null", "a layer without a shape"],
)
def test_a_damaged_plan_is_refused(values):
    with pytest.raises(OptionError, match="the plan is damaged") as refused:
        CompressionPlan.from_json(values)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": "4"}, "`stem.0` has the rank '4'"),
        ({"rank": 4.5}, "`stem.0` has the rank 4.5"),
        ({"rank": True}, "`stem.0` has the rank True"),
        ({"scheme": "cp"}, "`stem.0` has the scheme 'cp', known are matrix, dense"),
        ({"dense_shape": 5}, "damaged"),
        ({"relative_error": "small"}, "damaged"),
    ],
    ids=str,
)
def test_an_edited_layer_that_makes_no_sense_is_refused_by_name(values, message):
    plan = PLAN.to_json()
    plan["layers"][0] |= values
    with pytest.raises(OptionError, match=message):
        CompressionPlan.from_json(plan)


@pytest.mark.parametrize("values", [[], 3, None, "plan"], ids=str)
def test_what_is_no_plan_is_refused(values):
    with pytest.raises(OptionError, match="the plan has version None"):
        CompressionPlan.from_json(values)


def test_the_parameters_that_a_plan_removes_are_those_of_the_layers_it_factorises():
    assert PLAN.removed_parameters() == 8 * 27 - 3 * (8 + 27)


def test_the_layers_to_factorise_are_those_that_are_not_dense():
    assert PLAN.factorized() == {"stem.0": LOW}


@pytest.mark.parametrize("record", [RECORD, LayerRecord("head", "Linear", (10, 8), "dense", reason="classifier")])
def test_a_record_survives_json(record):
    assert LayerRecord.from_json(through_json(record.to_json())) == record


def test_a_record_leaves_out_what_does_not_apply_and_keeps_zeros():
    values = RECORD.to_json()
    assert values["relative_error"] == 0.0
    assert "reason" not in values
    assert "start_kappa" not in values


@pytest.mark.parametrize(("value", "attribute"), [(PLAN, "layers"), (LOW, "rank"), (RECORD, "rank")])
def test_plans_and_records_cannot_be_changed(value, attribute):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, attribute, None)
