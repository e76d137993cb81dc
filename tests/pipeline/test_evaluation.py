import json
import shutil
from pathlib import Path

import pytest
from artifacts import rewrite
from idx_files import write_idx_pair
from workshop import fill, listing, report_of, sha256

from lrcompress.errors import ArtifactError, DataError, LRCompressError
from lrcompress.pipeline import EvaluateOptions, Observer, evaluate
from lrcompress.robustness import AttackSettings

ARCH = "net.py:build"


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
    assert not any("spectrum" in layer for layer in report["layers"])  # the file does not have them


def test_a_data_set_of_other_classes_is_refused(shop):
    fill(shop / "other")
    write_idx_pair(shop / "other" / "data", "t10k", count=30, classes=4)
    with pytest.raises(DataError, match="has 4 classes, the network 3"):
        attack(shop / "out.safetensors", data="other/data")


def test_an_artifact_that_is_none_is_refused(shop):
    with pytest.raises(ArtifactError) as refused:
        attack(shop / "w.pt", data="data")
    assert isinstance(refused.value, LRCompressError)


@pytest.fixture
def old(shop):
    """A file that version 0.1.0 wrote, of the network in the shop: schema 1, one rank per layer."""
    shutil.copy(Path(__file__).parents[1] / "artifact" / "schema1" / "mlp.safetensors", shop / "old.safetensors")
    return shop / "old.safetensors"


def test_an_artifact_of_the_first_schema_is_evaluated(old):
    evaluation, report = attack(old, data="data")
    assert evaluation.images == 30
    ranks = {layer["name"]: layer["ranks"] for layer in report["layers"] if layer["scheme"] == "matrix"}
    assert ranks
    assert report["artifact"]["sha256"] == sha256(old)


def test_the_report_beside_an_artifact_of_the_first_schema_is_continued(old, shop):
    attack(old, data="data")
    report = report_of(old) | {"schema": 1}
    for layer in report["layers"]:  # as version 0.1.0 wrote it
        if "ranks" in layer:
            (layer["rank"],) = layer.pop("ranks")
            del layer["parameters"]
    (shop / "old.report.json").write_text(json.dumps(report))
    _, continued = evaluate(old, EvaluateOptions(settings=AttackSettings(), data="data", arch=ARCH))
    assert [e["settings"]["attacks"] for e in continued["evaluations"]] == [["fgsm"], []]


def never(*args, **kwargs):
    raise AssertionError(f"called with {args}")


@pytest.mark.parametrize("recorded", ["hfds/x", "torch/MNIST", "samples/mnist", "nowhere"])
def test_recorded_data_that_are_no_folder_here_are_not_opened(shop, monkeypatch, recorded):
    rewrite(shop / "tuned.safetensors", lambda manifest: manifest["recipe"]["fine_tuning"].update(data=recorded))
    monkeypatch.setattr("lrcompress.pipeline.images.open_images", never)
    before = listing(shop)
    with pytest.raises(DataError, match="no sample images fit a network of 3 classes"):
        attack(shop / "tuned.safetensors")
    assert listing(shop) == before
