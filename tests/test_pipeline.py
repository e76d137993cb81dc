import hashlib
import json
from pathlib import Path

import pytest
import torch
from artifacts import changed, rewrite
from checkpoint_files import write_safetensors
from networks import relative_difference
from workshop import fill, listing, load_options, make_network, training

from lrcompress import pipeline
from lrcompress.artifact import LoadedArtifact, load_artifact
from lrcompress.checkpoint import LoadOptions
from lrcompress.errors import ArtifactError, CheckpointError, DataError, LRCompressError, OptionError, OutputError
from lrcompress.pipeline import CompressOptions, EvaluateOptions, Observer, compress, evaluate, find_baseline
from lrcompress.robustness import AttackSettings

ARCH = "net.py:build"
pytestmark = pytest.mark.usefixtures("_short_timing")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report_of(path):
    return json.loads(path.with_name(path.stem + ".report.json").read_text())


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
        tol=0.1, load=LoadOptions(arch=ARCH, preprocessing=load_options(shop).preprocessing),
        data="data" if tuned else None, training=training() if tuned else None,
    )  # fmt: skip
    compress("w.pt", "again.safetensors", options)
    assert sha256(shop / "again.safetensors") == sha256(shop / ("tuned.safetensors" if tuned else "out.safetensors"))


def test_data_without_training_measure_accuracy_only(shop):
    options = CompressOptions(tol=0.1, load=load_options(shop), data="data", samples=10)
    report = compress("w.pt", "measured.safetensors", options)
    assert report["evaluations"][0]["images"] == 10
    assert "fine_tuning" not in report["recipe"]
    assert report["recipe"]["guaranteed_tol"] == 0.1


BAD = {
    "tolerance": ({"tol": 1.0}, {}, OptionError),
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
    options = CompressOptions(**{"tol": 0.1, "load": load_options(shop), **values})
    with pytest.raises(error) as refused:
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
        tol=0.1, load=load_options(shop), data="data", training=training(), overwrite=existing
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        compress(
            "w.pt",
            "out.safetensors" if existing else "new.safetensors",
            options,
            observer=Observer(on_training=interrupt),
        )
    assert listing(shop) == before


def attack(path, **values):
    settings = AttackSettings(attacks=("fgsm",), eps=(0.01, 0.1))
    return evaluate(path, EvaluateOptions(settings=settings, **{"arch": ARCH, **values}))


def test_the_baseline_is_found_and_both_models_are_evaluated_on_the_same_images(shop):
    evaluation, report = attack(shop / "out.safetensors", data="data")
    assert [model.role for model in evaluation.models] == ["baseline", "compressed"]
    assert evaluation.model("baseline").sha256 == sha256(shop / "w.pt")
    assert evaluation.images == 30
    assert report == report_of(shop / "out.safetensors")
    assert report["evaluations"][-1]["models"]["baseline"]["clean"]["correct"] == sum(evaluation.models[0].clean)


def test_the_baseline_is_found_beside_the_artifact_after_both_have_moved(shop, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    evaluation, _ = attack(shop / "out.safetensors", data=str(shop / "data"), arch=str(shop / ARCH))
    assert len(evaluation.models) == 2


def test_without_the_baseline_the_compressed_model_is_evaluated_alone_and_that_is_said(shop):
    (shop / "w.pt").unlink()
    said = []
    settings = AttackSettings(attacks=("fgsm",), eps=(0.1,))
    options = EvaluateOptions(settings=settings, data="data", arch=ARCH)
    evaluation, _ = evaluate(shop / "out.safetensors", options, observer=Observer(on_stage=said.append))
    assert [model.role for model in evaluation.models] == ["compressed"]
    assert any("no baseline" in line and "w.pt" in line and "--baseline" in line for line in said)


def test_a_changed_baseline_is_not_taken(shop):
    torch.save(make_network(seed=1).state_dict(), shop / "w.pt")
    artifact = load_artifact(shop / "out.safetensors", arch=ARCH)
    found, reason = find_baseline(shop / "out.safetensors", artifact, arch=ARCH)
    assert found is None
    assert "SHA-256 differs" in reason
    with pytest.raises(OptionError, match="SHA-256 differs"):
        attack(shop / "out.safetensors", data="data", baseline="w.pt")


def test_a_damaged_baseline_is_not_taken_and_the_difference_told(shop):
    (shop / "w.pt").write_bytes(b"")
    artifact = load_artifact(shop / "out.safetensors", arch=ARCH)
    assert "SHA-256 differs" in find_baseline(shop / "out.safetensors", artifact, arch=ARCH)[1]


def test_a_baseline_that_was_renamed_is_found_where_the_user_says(shop):
    (shop / "w.pt").rename(shop / "renamed.pt")
    evaluation, _ = attack(shop / "out.safetensors", data="data", baseline="renamed.pt")
    assert len(evaluation.models) == 2
    with pytest.raises(CheckpointError):
        attack(shop / "out.safetensors", data="data", baseline="w.pt")


def test_the_data_of_the_fine_tuning_is_used_again(shop):
    evaluation, _ = attack(shop / "tuned.safetensors")
    assert (evaluation.images, "data" in evaluation.data) == (30, True)


def test_without_any_data_the_user_is_asked_for_some(shop):
    before = listing(shop)
    with pytest.raises(DataError, match="no sample images fit a network of 3 classes") as refused:
        attack(shop / "out.safetensors")
    assert "--data" in refused.value.hint
    assert listing(shop) == before


def test_an_evaluation_is_added_to_the_report_and_the_same_one_replaced(shop):
    for _ in range(2):
        _, report = attack(shop / "tuned.safetensors")
    assert [e["settings"]["attacks"] for e in report["evaluations"]] == [[], ["fgsm"]]
    assert len(report["training_log"]) == 3


def test_a_lost_report_is_written_anew(shop):
    (shop / "out.report.json").unlink()
    _, report = attack(shop / "out.safetensors", data="data")
    assert report["size"]["compressed"]["bytes"] == (shop / "out.safetensors").stat().st_size
    assert (shop / "out.report.json").exists()


def test_a_data_set_of_other_classes_is_refused(shop):
    fill(shop / "other")
    from idx_files import write_idx_pair

    write_idx_pair(shop / "other" / "data", "t10k", count=30, classes=4)
    with pytest.raises(DataError, match="has 4 classes, the network 3"):
        attack(shop / "out.safetensors", data="other/data")


def test_an_artifact_that_is_none_is_refused(shop):
    with pytest.raises(ArtifactError) as refused:
        attack(shop / "w.pt", data="data")
    assert isinstance(refused.value, LRCompressError)


def never(*args, **kwargs):
    raise AssertionError(f"called with {args}")


# A path that only looks like one once it is joined with a folder.


@pytest.mark.parametrize(
    "recorded",
    [
        "timm/resnet18.a1_in1k",
        "torchvision/resnet18.IMAGENET1K_V1",
        "./timm/resnet18.a1_in1k",
        ".//torchvision/resnet18",
    ],
)
def test_an_artifact_cannot_make_its_reader_fetch_a_baseline(shop, monkeypatch, recorded):
    monkeypatch.setattr("lrcompress.checkpoint.load.fetch", never)
    artifact = load_artifact(Path("out.safetensors"), arch=ARCH)
    manifest = changed(artifact.manifest, source={**artifact.manifest.source, "path": recorded})
    found, reason = find_baseline(Path("out.safetensors"), LoadedArtifact(artifact.model, manifest), arch=ARCH)
    assert found is None
    assert "--baseline" in reason


@pytest.mark.parametrize("recorded", ["hfds/x", "torch/MNIST", "samples/mnist", "nowhere"])
def test_recorded_data_that_are_no_folder_here_are_not_opened(shop, monkeypatch, recorded):
    rewrite(shop / "tuned.safetensors", lambda manifest: manifest["recipe"]["fine_tuning"].update(data=recorded))
    monkeypatch.setattr(pipeline, "open_images", never)
    before = listing(shop)
    with pytest.raises(DataError, match="no sample images fit a network of 3 classes"):
        attack(shop / "tuned.safetensors")
    assert listing(shop) == before


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
@pytest.mark.parametrize("source", ["weights.safetensors", "folder"])
def test_the_checkpoint_itself_is_never_overwritten(shop, source, link):
    (shop / "folder").mkdir()
    file = shop / "folder" / "model.safetensors" if source == "folder" else shop / source
    write_safetensors(make_network().state_dict(), file)
    output = file
    if link:
        output = shop / "link.safetensors"
        output.symlink_to(file) if link == "symbolic" else output.hardlink_to(file)
    before = listing(shop)
    options = CompressOptions(tol=0.1, load=load_options(shop), overwrite=True)
    with pytest.raises(OutputError, match="is the checkpoint itself") as refused:
        compress(source, output, options)
    assert "-o" in refused.value.hint
    assert listing(shop) == before


def test_the_state_of_an_optimiser_does_not_count_as_a_reduction_of_the_weights(shop):
    state = make_network().state_dict()
    weights = sum(4 * value.numel() for value in state.values())
    torch.save({"state_dict": state, "optimizer": [torch.zeros(2 * weights // 4)]}, shop / "training.pt")
    report = compress("training.pt", "new.safetensors", CompressOptions(tol=0.1, load=load_options(shop)))
    assert report["source"]["weight_bytes"] == weights
    original, left = ((shop / name).stat().st_size for name in ("training.pt", "new.safetensors"))
    (sentence,) = (sentence for sentence in report["verdict"] if "no weights of this network" in sentence)
    assert sentence.startswith(f"{original - weights:,} bytes")
    assert sentence.endswith(f"the file is {100 * (1 - left / weights):.1f} % smaller.")
