import pytest
import torch
from checkpoint_files import write_safetensors
from networks import relative_difference
from workshop import listing, load_options, make_network, report_of, sha256, training

from lrcompress.artifact import load_artifact
from lrcompress.checkpoint import LoadOptions
from lrcompress.errors import CheckpointError, DataError, OptionError, OutputError
from lrcompress.pipeline import CompressOptions, Observer, compress
from lrcompress.plan import Budget, Tolerance

ARCH = "net.py:build"
pytestmark = pytest.mark.usefixtures("_short_timing")


def test_without_data_each_layer_keeps_its_tolerance_or_says_why_it_is_dense(shop):
    report = report_of(shop / "out.safetensors")
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["3"]["rank"] == 4
    assert layers["3"]["relative_error"] <= 0.1
    assert {name for name, layer in layers.items() if layer["scheme"] == "dense"} == {"1", "5", "7"}
    assert "does not remove parameters" in layers["5"]["reason"]
    assert "first layer" in layers["1"]["reason"]
    assert "classifier" in layers["7"]["reason"]
    dense = make_network()
    weight = load_artifact(shop / "out.safetensors", arch=ARCH).model[3]
    product = weight.expand.weight @ weight.reduce.weight
    assert relative_difference(product, dense[3].weight) <= 0.1


def test_the_report_counts_the_whole_model_and_the_file(shop):
    report = report_of(shop / "out.safetensors")
    parameters = 30 * 32 + 32 + 2 * (32 * 32 + 32) + 32 * 3 + 3
    fewer = parameters - 32 * 32 + 4 * (32 + 32)
    assert report["size"]["baseline"]["parameters"] == parameters
    assert report["size"]["compressed"]["parameters"] == fewer
    assert report["size"]["removed"]["parameters"] == pytest.approx(1 - fewer / parameters)
    assert report["size"]["baseline"]["bytes"] == (shop / "w.pt").stat().st_size
    assert report["size"]["compressed"]["bytes"] == (shop / "out.safetensors").stat().st_size
    assert report["size"]["baseline"]["macs"] == 30 * 32 + 2 * 32 * 32 + 32 * 3
    assert report["artifact"]["sha256"] == sha256(shop / "out.safetensors")
    assert report["source"]["sha256"] == sha256(shop / "w.pt")
    assert report["evaluations"] == []


def test_with_data_the_network_is_fine_tuned_and_its_accuracy_measured(shop):
    report = report_of(shop / "tuned.safetensors")
    tuning = report["recipe"]["fine_tuning"]
    assert (tuning["data"], tuning["epochs"], tuning["held_out_images"]) == ("data", 2, 6)
    assert [entry["epoch"] for entry in report["training_log"]] == [0, 1, 2]
    assert report["recipe"]["guaranteed_tol"] is None
    (evaluation,) = report["evaluations"]
    assert (evaluation["images"], evaluation["settings"]["attacks"]) == (30, [])
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["5"]["scheme"] == "matrix"  # with training the flat layer is cut too
    assert layers["5"]["rank"] <= 15
    assert layers["5"]["start_kappa"] == pytest.approx(1, abs=1e-4)
    assert load_artifact(shop / "tuned.safetensors", arch=ARCH).manifest.class_names == ("0", "1", "2")


@pytest.mark.parametrize("tuned", [False, True])
def test_the_same_input_and_seed_give_the_same_bytes(shop, tuned):
    options = CompressOptions(
        policy=None if tuned else Tolerance(0.1),
        load=LoadOptions(arch=ARCH, preprocessing=load_options(shop).preprocessing),
        data="data" if tuned else None,
        training=training() if tuned else None,
    )
    compress("w.pt", "again.safetensors", options)
    assert sha256(shop / "again.safetensors") == sha256(shop / ("tuned.safetensors" if tuned else "out.safetensors"))


def test_data_without_training_measure_accuracy_only(shop):
    options = CompressOptions(policy=Tolerance(0.1), load=load_options(shop), data="data", samples=10)
    report = compress("w.pt", "measured.safetensors", options)
    assert report["evaluations"][0]["images"] == 10
    assert "fine_tuning" not in report["recipe"]
    assert report["recipe"]["guaranteed_tol"] == 0.1


@pytest.mark.parametrize("values", [{}, {"policy": Tolerance(0.1), "training": training()}], ids=["none", "both"])
def test_a_compression_has_a_policy_or_a_plan_or_a_training(values):
    with pytest.raises(OptionError, match="takes one of a rank policy, a plan, and a fine-tuning"):
        CompressOptions(**values)


def test_a_budget_is_kept_by_the_model_that_is_written(shop):
    policy = Budget(fraction=0.8)
    report = compress("w.pt", "small.safetensors", CompressOptions(policy=policy, load=load_options(shop)))
    size = report["size"]
    left = 0.8 * size["baseline"]["parameters"] - size["compressed"]["parameters"]
    assert 0 <= left < 32 + 32  # no room for one rank more
    assert report["recipe"] == {"plan": {"name": "budget", "fraction": 0.8}, "guaranteed_tol": None}
    assert any("their largest relative error is" in sentence for sentence in report["verdict"])


BAD = {
    "a budget that cannot be met": ({"policy": Budget(parameters=2)}, {}, OptionError),
    "training without data": ({"training": training()}, {}, OptionError),
    "no such data": ({"data": "nowhere"}, {}, DataError),
    "twenty images to train on": ({"data": "samples/mnist", "training": training()}, {}, OptionError),
    "no checkpoint": ({}, {"source": "nowhere.pt"}, CheckpointError),
    "not safetensors": ({}, {"output": "out.pt"}, OptionError),
    "existing": ({}, {"output": "out.safetensors"}, OutputError),
    "no folder": ({}, {"output": "nowhere/new.safetensors"}, OutputError),
}


@pytest.mark.parametrize(("values", "places", "error"), BAD.values(), ids=BAD.keys())
def test_what_goes_wrong_leaves_nothing_behind(shop, values, places, error):
    before = listing(shop)
    policy = None if "training" in values else Tolerance(0.1)
    with pytest.raises(error) as refused:  # noqa: PT012  # some are refused when the options are made
        options = CompressOptions(**{"policy": policy, "load": load_options(shop), **values})
        compress(places.get("source", "w.pt"), places.get("output", "new.safetensors"), options)
    assert refused.value.hint
    assert listing(shop) == before


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_fine_tuning_leaves_nothing_behind(shop, existing):
    before = listing(shop)

    def interrupt(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    options = CompressOptions(
        load=load_options(shop), data="data", training=training(), overwrite=existing
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        compress(
            "w.pt",
            "out.safetensors" if existing else "new.safetensors",
            options,
            observer=Observer(on_training=interrupt),
        )
    assert listing(shop) == before


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
@pytest.mark.parametrize("source", ["weights.safetensors", "folder"])
def test_the_checkpoint_itself_is_never_overwritten(shop, source, link):
    (shop / "folder").mkdir()
    (shop / "folder" / "config.json").write_text("{}")
    file = shop / "folder" / "model.safetensors" if source == "folder" else shop / source
    write_safetensors(make_network().state_dict(), file)
    output = file
    if link:
        output = shop / "link.safetensors"
        output.symlink_to(file) if link == "symbolic" else output.hardlink_to(file)
    before = listing(shop)
    options = CompressOptions(policy=Tolerance(0.1), load=load_options(shop), overwrite=True)
    with pytest.raises(OutputError, match="is the checkpoint itself") as refused:
        compress(source, output, options)
    assert "-o" in refused.value.hint
    assert listing(shop) == before


def test_the_state_of_an_optimiser_does_not_count_as_a_reduction_of_the_weights(shop):
    state = make_network().state_dict()
    weights = sum(4 * value.numel() for value in state.values())
    torch.save({"state_dict": state, "optimizer": [torch.zeros(2 * weights // 4)]}, shop / "training.pt")
    report = compress("training.pt", "new.safetensors", CompressOptions(policy=Tolerance(0.1), load=load_options(shop)))
    assert report["source"]["weight_bytes"] == weights
    original, left = ((shop / name).stat().st_size for name in ("training.pt", "new.safetensors"))
    (sentence,) = (sentence for sentence in report["verdict"] if "no weights of this network" in sentence)
    assert sentence.startswith(f"{original - weights:,} bytes")
    assert sentence.endswith(f"the file is {100 * (1 - left / weights):.1f} % smaller.")
