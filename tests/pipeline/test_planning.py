import pytest
import torch
from networks import snapshot
from PIL import Image
from workshop import load_options, sha256

from lrcompress.checkpoint import load_checkpoint
from lrcompress.errors import DataError, OptionError
from lrcompress.factorize import factorize
from lrcompress.pipeline import LayerOptions, MaxDrop, Observer, plan_loaded
from lrcompress.pipeline.planning import calibrate_loaded
from lrcompress.plan import Calibration, Tolerance, UniformRank, find_layers
from lrcompress.schemes import SCHEMES


@pytest.fixture
def loaded(shop):
    return load_checkpoint("w.pt", load_options(shop))


def forms(plan):
    return {layer.name: (layer.scheme, layer.ranks) for layer in plan.layers}


def test_a_plan_knows_its_checkpoint_and_how_it_was_asked_for(shop, loaded):
    layers = LayerOptions(scheme="matrix", round_ranks=2, layer_schemes={"5": "matrix"})
    plan, decomposer = plan_loaded(loaded, UniformRank(4), layers)
    assert plan.source_sha256 == sha256(shop / "w.pt")
    assert plan.policy == {
        "name": "uniform rank", "rank": 4, "scheme": "matrix", "round_ranks": 2, "layer_schemes": {"5": "matrix"},
    }  # fmt: skip
    assert (decomposer.wanted, decomposer.round_ranks) == ("matrix", 2)
    assert plan.calibration is None
    assert forms(plan)["3"] == forms(plan)["5"] == ("matrix", (4,))


def test_what_is_the_default_is_not_told(loaded):
    plan, _ = plan_loaded(loaded, Tolerance(0.1))
    assert plan.policy == {"name": "tolerance", "tol": 0.1}
    assert LayerOptions().describe() == {}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (LayerOptions(), {"3", "5"}),
        (LayerOptions(include_first=True), {"1", "3", "5"}),
        (LayerOptions(include_classifier=True), {"3", "5", "7"}),
        (LayerOptions(exclude=("5",)), {"3"}),
        (LayerOptions(include_first=True, exclude=("[13]",)), {"5"}),
    ],
)
def test_the_layers_are_those_that_were_asked_for(loaded, layers, expected):
    plan, _ = plan_loaded(loaded, UniformRank(2), layers)
    assert plan.factorized().keys() == expected


def test_ranks_by_pattern_reach_the_plan(loaded):
    plan, _ = plan_loaded(loaded, UniformRank(8), LayerOptions(layer_ranks={"*": 3, "5": 6}))
    assert forms(plan)["3"] == ("matrix", (3,))
    assert forms(plan)["5"] == ("matrix", (6,))


@pytest.mark.parametrize("field", ["layer_schemes", "layer_ranks", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(loaded, field):
    value = {"layer_schemes": {"9": "matrix"}, "layer_ranks": {"9": 2}, "exclude": ("9",)}[field]
    with pytest.raises(OptionError, match="`9` matches no layer") as refused:
        plan_loaded(loaded, Tolerance(0.1), LayerOptions(**{field: value}))
    assert refused.value.hint


def test_a_scheme_that_fits_none_of_its_layers_is_refused_with_those_that_fit(loaded):
    layers = LayerOptions(layer_schemes={"3": "matrix", "[35]": "tucker2"})
    with pytest.raises(
        OptionError, match=r"the scheme tucker2 fits none of the layers that `\[35\]` matches"
    ) as refused:
        plan_loaded(loaded, Tolerance(0.1), layers, calibration=Calibration("nowhere"))
    assert refused.value.hint == "what fits there: matrix"


def test_a_scheme_for_a_layer_that_stays_dense_is_refused_with_the_reason(loaded):
    with pytest.raises(OptionError, match="`1`: the first layer stays dense") as refused:
        plan_loaded(loaded, Tolerance(0.1), LayerOptions(layer_schemes={"1": "matrix"}))
    assert refused.value.hint == "add --include-first"


def test_single_layers_may_be_left_to_the_program_while_others_are_not(loaded):
    layers = LayerOptions(scheme="matrix", layer_schemes={"3": "auto"})
    assert plan_loaded(loaded, UniformRank(4), layers)[0].factorized()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "cp"}, "no scheme named `cp`"),
        ({"scheme": ""}, "no scheme named ``"),
        ({"layer_schemes": {"3": "svd"}}, "no scheme named `svd`"),
        ({"round_ranks": 0}, "--round-ranks must be at least 1, got 0"),
        ({"round_ranks": -8}, "--round-ranks must be at least 1, got -8"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(OptionError, match=message) as refused:
        LayerOptions(**values)
    assert refused.value.hint


@pytest.mark.parametrize("scheme", ["auto", *SCHEMES])
def test_every_scheme_may_be_asked_for(scheme):
    assert LayerOptions(scheme=scheme).scheme == scheme


def candidates(loaded):
    found = find_layers(loaded.model, loaded.preprocessing.input_size)
    return [one for one in found if not one.reason]


def test_layers_are_measured_on_training_images_as_the_network_takes_them(loaded):
    metrics = calibrate_loaded(loaded, Calibration("data", 60), candidates(loaded))
    assert metrics.keys() == {"3", "5"}
    again = calibrate_loaded(loaded, Calibration("data"), candidates(loaded))  # all sixty there are
    others = calibrate_loaded(loaded, Calibration("data", 20, seed=1), candidates(loaded))
    for name, metric in metrics.items():
        assert torch.allclose(again[name].output_gram, metric.output_gram, rtol=1e-4)
        assert not torch.allclose(others[name].output_gram, metric.output_gram, rtol=1e-4)


def test_calibrating_changes_neither_the_networks_modules_nor_its_values(loaded):
    before, modules = snapshot(loaded.model), [type(module) for module in loaded.model.modules()]
    plan, decomposer = plan_loaded(loaded, UniformRank(4), calibration=Calibration("data", 10))
    assert plan.calibration == Calibration("data", 10)
    assert decomposer.metrics.keys() == {"3", "5"}
    assert [type(module) for module in loaded.model.modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


def test_more_images_than_there_are_cannot_be_measured(loaded):
    with pytest.raises(DataError, match="has 60 images to calibrate with, 61 were asked for") as refused:
        calibrate_loaded(loaded, Calibration("data", 61), candidates(loaded))
    assert refused.value.hint == "--calibration-images 60"


@pytest.mark.parametrize(("count", "warned"), [(63, True), (64, False)])
def test_few_images_are_warned_of(shop, loaded, count, warned):
    (shop / "photos").mkdir()
    for index in range(100):
        Image.new("L", (5, 6), index).save(shop / "photos" / f"{index}.png")
    said = []
    plan_loaded(loaded, UniformRank(4), calibration=Calibration("photos", count), observer=Observer(said.append))
    assert said[0] == f"calibrating with {count} images of photos"
    assert any("WARNING" in line for line in said) == warned


def test_a_plan_knows_how_many_images_there_were(loaded):
    plan, _ = plan_loaded(loaded, UniformRank(4), calibration=Calibration("data", seed=2))
    assert plan.calibration == Calibration("data", 60, seed=2)


@pytest.mark.parametrize("data", [None, "samples/mnist"])
def test_a_search_needs_images(loaded, data):
    with pytest.raises(OptionError, match="--max-drop needs images"):
        plan_loaded(loaded, MaxDrop(5.0), data=data, calibration=Calibration("nowhere"))


def test_the_plan_of_a_search_is_the_smallest_that_it_found_within_the_drop(loaded):
    before, said = snapshot(loaded.model), []
    observer = Observer(on_stage=said.append)
    plan, decomposer = plan_loaded(loaded, MaxDrop(20.0, images=40), data="data", observer=observer)
    assert (plan.policy["name"], plan.policy["images"]) == ("max drop", 40)
    tried = plan.policy["evaluations"]
    assert sum("of the parameters" in line for line in said) == len(tried)
    small = factorize(loaded.model, plan, decomposer=decomposer)
    total, left = (sum(value.numel() for value in model.parameters()) for model in (loaded.model, small))
    assert left / total == pytest.approx(min(one["kept"] for one in tried if one["drop"] <= 20))
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


def test_whoever_calls_sees_stages_and_layers(loaded):
    said, layers = [], []
    observer = Observer(on_stage=said.append, on_layer=lambda done, total: layers.append((done, total)))
    plan_loaded(loaded, UniformRank(4), calibration=Calibration("data", 10), observer=observer)
    few = "WARNING: 10 images are few to calibrate with; some hundred are better"
    assert said == ["calibrating with 10 images of data", few, "planning"]
    assert layers == [(1, 2), (2, 2)]
