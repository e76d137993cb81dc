import dataclasses
import json

import pytest

from lrcompress.errors import OptionError
from lrcompress.models import Preprocessing
from lrcompress.plan import Calibration, CompressionPlan, LayerPlan, LayerRecord

LOW = LayerPlan("stem.0", "Conv2d", (8, 3, 3, 3), "matrix", (3,), relative_error=0.04, parameters=3 * (8 + 27))
TUCKER = LayerPlan("stem.1", "Conv2d", (8, 8, 3, 3), "tucker2", (4, 2), relative_error=0.5, parameters=16 + 72 + 32)
DENSE = LayerPlan("head", "Linear", (10, 8), "dense", reason="the classifier")
PLAN = CompressionPlan({"name": "tolerance", "tol": 0.1}, (LOW, TUCKER, DENSE), "ab" * 32, Calibration("photos", 40, 3))
RECORD = LayerRecord(
    "stem.0", "Conv2d", (8, 3, 3, 3), "matrix", (3,), 105, relative_error=0.0, sigma_max=2.0, kappa=1.5
)


def through_json(values):
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("calibration", [None, PLAN.calibration, Calibration("photos")])
def test_a_plan_survives_json(calibration):
    plan = dataclasses.replace(PLAN, calibration=calibration)
    assert CompressionPlan.from_json(through_json(plan.to_json())) == plan


def test_the_preprocessing_survives_json_and_plans_that_do_not_know_it_load():
    plan = dataclasses.replace(PLAN, preprocessing=Preprocessing((1, 6, 5), (0.5,), (0.25,), 0.9, "bicubic", "here"))
    assert CompressionPlan.from_json(through_json(plan.to_json())) == plan
    old = through_json(plan.to_json())
    del old["preprocessing"]
    assert CompressionPlan.from_json(old) == PLAN


# The first version had one rank per layer, and no schemes to choose between.
@pytest.mark.parametrize("version", [None, 0, 1, 3, "2"])
def test_a_plan_of_another_version_is_refused(version):
    with pytest.raises(OptionError, match=f"the plan has version {version}, this program reads 2") as refused:
        CompressionPlan.from_json(PLAN.to_json() | {"version": version})
    assert refused.value.hint


def without_layers():
    values = PLAN.to_json()
    del values["layers"]
    return values


@pytest.mark.parametrize(
    "values",
    [
        without_layers(),
        PLAN.to_json() | {"layers": None},
        PLAN.to_json() | {"layers": [{"name": "x"}]},
        PLAN.to_json() | {"calibration": {"folder": "photos"}},
        PLAN.to_json() | {"calibration": {"data": "photos", "images": 0}},
        PLAN.to_json() | {"calibration": {"data": "photos", "images": 9, "seed": -1}},
        PLAN.to_json() | {"preprocessing": {"mean": [0.5]}},
    ],
    ids=[
        "no layers",
        "null",
        "a layer without a shape",
        "an unknown calibration",
        "a calibration without images",
        "a calibration with a negative seed",
        "a mean without a size",
    ],
)
def test_a_damaged_plan_is_refused(values):
    with pytest.raises(OptionError, match="the plan is damaged") as refused:
        CompressionPlan.from_json(values)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ranks": ["4"]}, r"`stem.0` has the ranks \['4'\]"),
        ({"ranks": [4.5]}, r"`stem.0` has the ranks \[4.5\]"),
        ({"ranks": [2, True]}, r"`stem.0` has the ranks \[2, True\]"),
        ({"ranks": 4}, "`stem.0` has the ranks 4"),
        ({"ranks": None}, "`stem.0` has the ranks None"),
        ({"scheme": "cp"}, "`stem.0` has the scheme 'cp', known are matrix, spatial, tucker2, split, dense"),
        ({"dense_shape": 5}, "damaged"),
        ({"dense_shape": [64.9, 3]}, "damaged"),
        ({"dense_shape": ["64", 3]}, "damaged"),
        ({"relative_error": "nan"}, "damaged"),
        ({"relative_error": "small"}, "damaged"),
        ({"parameters": "many"}, "damaged"),
    ],
    ids=str,
)
def test_an_edited_layer_that_makes_no_sense_is_refused_by_name(values, message):
    plan = PLAN.to_json()
    plan["layers"][0] |= values
    with pytest.raises(OptionError, match=message):
        CompressionPlan.from_json(plan)


@pytest.mark.parametrize(
    ("values", "hint"),
    [({"ranks": 4}, '"ranks": [20]'), ({"ranks": ["4"]}, '"ranks": [20]'), ({"scheme": "cp"}, '"scheme": "matrix"')],
    ids=str,
)
def test_the_hint_of_an_edit_can_be_pasted(values, hint):
    plan = PLAN.to_json()
    plan["layers"][0] |= values
    with pytest.raises(OptionError) as refused:
        CompressionPlan.from_json(plan)
    assert refused.value.hint == hint


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(LayerPlan) if field.name != "name"])
def test_a_key_that_a_layer_lacks_is_named(key):
    plan = PLAN.to_json()
    del plan["layers"][0][key]
    with pytest.raises(OptionError, match=f"the plan is damaged: `stem.0` has no key `{key}`$") as refused:
        CompressionPlan.from_json(plan)
    assert refused.value.hint == "put it back, or make the plan again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["layers"][1].pop("name"), "a layer has no key `name`"),
        (lambda plan: plan.pop("layers"), "it has no key `layers`"),
        (lambda plan: plan.update(layers=[3]), "a layer is 3, no table of keys"),
    ],
    ids=["name", "layers", "a number"],
)
def test_what_else_is_missing_is_named(change, message):
    plan = PLAN.to_json()
    change(plan)
    with pytest.raises(OptionError, match=f"the plan is damaged: {message}"):
        CompressionPlan.from_json(plan)


@pytest.mark.parametrize("values", [[], 3, None, "plan"], ids=str)
def test_what_is_no_plan_is_refused(values):
    with pytest.raises(OptionError, match="the plan has version None"):
        CompressionPlan.from_json(values)


def test_a_layer_that_is_edited_to_be_dense_forgets_its_ranks():
    plan = PLAN.to_json()
    plan["layers"][0] |= {"scheme": "dense", "reason": "by hand"}
    layer = CompressionPlan.from_json(plan).layers[0]
    assert (layer.scheme, layer.ranks, layer.reason) == ("dense", (), "by hand")


def test_the_parameters_that_a_plan_removes_are_those_of_the_layers_it_factorises():
    assert PLAN.removed_parameters() == 8 * 27 - 3 * (8 + 27) + 8 * 8 * 9 - (16 + 72 + 32)


def test_what_goes_with_a_weight_is_counted_too():
    """The gain of a weight-standardised convolution."""
    layer = dataclasses.replace(LOW, dense_parameters=8 * 27 + 8)
    assert CompressionPlan({}, (layer, DENSE)).removed_parameters() == 8 * 27 + 8 - 3 * (8 + 27)
    assert LayerPlan.from_json(through_json(layer.to_json())) == layer


def test_the_layers_to_factorise_are_those_that_are_not_dense():
    assert PLAN.factorized() == {"stem.0": LOW, "stem.1": TUCKER}


@pytest.mark.parametrize("images", [0, -3])
def test_a_calibration_without_images_is_refused(images):
    with pytest.raises(OptionError, match=f"at least one image, got {images}") as refused:
        Calibration("photos", images)
    assert refused.value.hint


RECORDS = [
    RECORD,
    LayerRecord("head", "Linear", (10, 8), "dense", reason="classifier"),
    LayerRecord("stem.1", "Conv2d", (8, 8, 3, 3), "tucker2", (4, 2), 120, relative_error=0.5, start_kappa=3.0),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.scheme)
def test_a_record_survives_json(record):
    assert LayerRecord.from_json(through_json(record.to_json())) == record


def test_a_record_leaves_out_what_does_not_apply_and_keeps_zeros():
    values = RECORD.to_json()
    assert values["relative_error"] == 0.0
    assert "reason" not in values
    assert "start_kappa" not in values


@pytest.mark.parametrize(
    ("shape", "rank", "parameters"), [((8, 3, 3, 3), 3, 3 * (8 + 27)), ((10, 8), 2, 36)], ids=["Conv2d", "Linear"]
)
def test_a_record_of_the_first_schema_had_one_rank(shape, rank, parameters):
    old = {"name": "a", "kind": "x", "dense_shape": list(shape), "scheme": "matrix", "rank": rank, "kappa": 1.5}
    record = LayerRecord.from_json(old)
    assert (record.ranks, record.parameters, record.kappa) == ((rank,), parameters, 1.5)
    dense = LayerRecord.from_json({"name": "a", "kind": "x", "dense_shape": list(shape), "scheme": "dense"})
    assert (dense.ranks, dense.parameters) == ((), None)


@pytest.mark.parametrize(("value", "attribute"), [(PLAN, "layers"), (LOW, "ranks"), (RECORD, "ranks")])
def test_plans_and_records_cannot_be_changed(value, attribute):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, attribute, None)
