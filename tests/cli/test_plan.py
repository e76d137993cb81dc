import json

import pytest
import torch
from command import assert_refused, run
from PIL import Image
from safetensors.torch import load_file
from workshop import INPUT_OPTIONS, listing, make_network

OWN = ("--arch", "net.py:build", *INPUT_OPTIONS)


def plan(*args):
    return run("plan", "w.pt", *OWN, *args)


def compress(*args):
    return run("compress", "w.pt", *OWN, *args)


def edit(shop, change):
    values = json.loads((shop / "out.plan.json").read_text())
    change({layer["name"]: layer for layer in values["layers"]})
    (shop / "out.plan.json").write_text(json.dumps(values))


def test_a_plan_is_printed_and_written_and_nothing_else_happens(shop):
    before = listing(shop)
    result = plan()
    assert (result.exit_code, result.stdout) == (0, "out.plan.json\n")
    assert "1 of 4 layers would be factorised: 3,203 → 2,435 parameters (24.0 % fewer)" in result.stderr
    after = listing(shop)
    values = json.loads(after.pop("out.plan.json"))
    assert after == before
    assert values["policy"] == {"name": "tolerance", "tol": 0.1}
    assert {layer["name"]: layer["rank"] for layer in values["layers"]} == {"1": None, "3": 4, "5": None, "7": None}


def test_json_on_stdout_is_the_plan_that_is_written(shop):
    result = plan("--budget", "0.8", "--json")
    assert json.loads(result.stdout) == json.loads((shop / "out.plan.json").read_text())


def test_the_plan_is_what_compress_does(shop):
    plan("--energy", "0.9")
    compress("--energy", "0.9", "-o", "at_once.safetensors")
    report = json.loads(compress("--plan", "out.plan.json", "-o", "planned.safetensors", "--json").stdout)
    at_once = json.loads((shop / "at_once.report.json").read_text())
    assert [layer.get("rank") for layer in report["layers"]] == [layer.get("rank") for layer in at_once["layers"]]
    assert report["recipe"]["plan"] == {"name": "plan", "made_by": {"name": "energy", "energy": 0.9}}
    assert report["recipe"]["guaranteed_tol"] is None  # it may have been edited


def test_an_edited_plan_is_executed(shop):
    plan()

    def by_hand(layers):
        layers["3"]["rank"] = 2
        layers["5"] |= {"scheme": "matrix", "rank": 7, "reason": ""}
        layers["7"]["reason"] = "by hand"

    edit(shop, by_hand)
    report = json.loads(compress("--plan", "out.plan.json", "-o", "new.safetensors", "--json").stdout)
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert (layers["3"]["rank"], layers["5"]["rank"], layers["7"]["reason"]) == (2, 7, "by hand")


def test_a_plan_for_another_checkpoint_is_refused(shop):
    plan()
    torch.save(make_network(seed=1).state_dict(), shop / "w.pt")
    before = listing(shop)
    assert_refused(compress("--plan", "out.plan.json", "-o", "new.safetensors"), "made for another checkpoint")
    assert listing(shop) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no plan in `bad.json`: No such file"),
        ("", "no plan in `bad.json`"),
        ("{", "no plan in `bad.json`"),
        ("[]", "the plan has version None"),
        ('{"version": 9}', "the plan has version 9"),
    ],
)
def test_what_is_no_plan_is_refused(shop, content, message):
    if content is not None:
        (shop / "bad.json").write_text(content)
    before = listing(shop)
    assert_refused(compress("--plan", "bad.json", "-o", "new.safetensors"), message)
    assert listing(shop) == before


BAD = {
    "tolerance": (["--tol", "2"], ["--tol"]),
    "two policies": (["--rank", "2", "--energy", "0.5"], ["--energy and --rank exclude each other"]),
    "budget": (["--max-macs", "10"], ["cannot be met", "multiply-accumulates"]),
    "folder": (["-o", "nowhere/p.json"], ["no folder `nowhere`"]),
    "existing": (["-o", "w.pt"], ["`w.pt` exists", "--overwrite"]),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_option_is_refused_and_nothing_is_written(shop, options, words):
    before = listing(shop)
    assert_refused(plan(*options), *words)
    assert listing(shop) == before


def test_options_that_a_plan_makes_idle_are_refused(shop):
    plan()
    assert_refused(compress("--plan", "out.plan.json", "--tol", "0.2", "-o", "n.safetensors"), "leaves nothing to plan")
    tuned = compress("--plan", "out.plan.json", "--data", "data", "--epochs", "1", "-o", "n.safetensors")
    assert_refused(tuned, "--plan has no effect on it")


def planned(shop):
    values = json.loads((shop / "out.plan.json").read_text())
    return values, {layer["name"]: layer for layer in values["layers"]}


def test_a_calibrated_plan_names_its_images_and_compress_reads_them_again(shop):
    assert plan("--rank", "8", "--calibrate", "data", "--calibration-images", "40", "--seed", "3").exit_code == 0
    values, layers = planned(shop)
    assert values["calibration"] == {"data": "data", "images": 40, "seed": 3}
    plan("--rank", "8", "-o", "plain.plan.json")
    plain = {layer["name"]: layer for layer in json.loads((shop / "plain.plan.json").read_text())["layers"]}
    # The sixth layer's spectrum is flat, that of its outputs is not.
    assert plain["5"]["relative_error"] == pytest.approx(0.75**0.5, abs=1e-4)
    assert layers["5"]["relative_error"] < 0.8 * plain["5"]["relative_error"]
    report = json.loads(compress("--plan", "out.plan.json", "-o", "planned.safetensors", "--json").stdout)
    options = ("--rank", "8", "--calibrate", "data", "--calibration-images", "40", "--seed", "3")
    compress(*options, "-o", "at_once.safetensors")
    compress("--rank", "8", "-o", "plain.safetensors")
    at_once = json.loads((shop / "at_once.report.json").read_text())
    assert report["recipe"]["calibration"] == values["calibration"] == at_once["recipe"]["calibration"]
    tensors = {name: load_file(shop / f"{name}.safetensors") for name in ("planned", "at_once", "plain")}
    assert all(torch.equal(tensors["planned"][key], value) for key, value in tensors["at_once"].items())
    assert not all(torch.equal(tensors["planned"][key], value) for key, value in tensors["plain"].items())
    assert "for the activations of images of data" in " ".join(report["verdict"])


def test_a_calibrated_tolerance_promises_nothing_of_the_weights(shop):
    report = json.loads(compress("--tol", "0.3", "--calibrate", "data", "-o", "n.safetensors", "--json").stdout)
    assert report["recipe"]["guaranteed_tol"] is None


def test_fine_tuning_starts_from_a_calibrated_truncation(shop):
    options = ("--data", "data", "--epochs", "1", "--max-rank", "4", "--distill", "0", "--lr", "1e-9")
    reports = {}
    for name, more in {"plain": (), "calibrated": ("--calibrate", "data")}.items():
        result = compress(*options, *more, "-o", f"{name}.safetensors", "--json")
        assert result.exit_code == 0, result.stderr
        reports[name] = json.loads(result.stdout)
    assert "calibration" not in reports["plain"]["recipe"]
    assert reports["calibrated"]["recipe"]["calibration"] == {"data": "data", "images": None, "seed": 0}
    # With hardly any learning the layers stay where they start, and the plain truncation is nearest to the weights.
    errors = {name: report["layers"][2]["relative_error"] for name, report in reports.items()}
    assert errors["plain"] < errors["calibrated"]


def test_images_to_calibrate_with_need_no_classes(shop):
    (shop / "flat").mkdir()
    for index in range(6):
        Image.new("L", (5, 6), 40 * index).save(shop / "flat" / f"{index}.png")
    assert plan("--rank", "8", "--calibrate", "flat").exit_code == 0


def test_excluded_layers_stay_dense_and_say_so(shop):
    plan("--rank", "8", "--exclude", "5")
    _, layers = planned(shop)
    assert (layers["3"]["rank"], layers["5"]["scheme"]) == (8, "dense")
    assert layers["5"]["reason"] == "excluded by the pattern `5`"


def test_ranks_can_be_given_by_pattern(shop):
    options = ("--rank", "8", "--layer-rank", "3=2", "--include-first")
    plan(*options)
    _, layers = planned(shop)
    assert [layers[name]["rank"] for name in "135"] == [8, 2, 8]
    report = json.loads(compress(*options, "-o", "n.safetensors", "--json").stdout)
    assert report["recipe"]["plan"]["layer_ranks"] == {"3": 2}
    assert "<code>3</code> 2" in (shop / "n.report.html").read_text()
    tolerant = json.loads(compress("--tol", "0.5", "--layer-rank", "3=1", "-o", "m.safetensors", "--json").stdout)
    assert tolerant["recipe"]["guaranteed_tol"] is None


BAD_CALIBRATION = {
    "rank of a layer": (["--layer-rank", "3"], ["--layer-rank takes PATTERN=RANK"]),
    "rank of no layer": (["--layer-rank", "nothing=3"], ["`nothing` matches no layer"]),
    "rank too large": (["--layer-rank", "3=16"], ["`3` cannot have rank 16", "from 1 to 15"]),
    "no such folder": (["--calibrate", "nowhere"], ["no data at `nowhere`"]),
    "too few": (["--calibrate", "data", "--calibration-images", "900"], ["has 60 images", "900 were asked for"]),
    "no source": (["--calibration-images", "9"], ["--calibration-images needs a source"]),
    "pattern": (["--exclude", "9"], ["`9` matches no layer"]),
}


@pytest.mark.parametrize(("options", "words"), BAD_CALIBRATION.values(), ids=BAD_CALIBRATION.keys())
@pytest.mark.parametrize("verb", [plan, compress], ids=["plan", "compress"])
def test_a_bad_calibration_or_pattern_is_refused_and_nothing_is_written(shop, verb, options, words):
    before = listing(shop)
    assert_refused(verb(*options, "-o", "n.safetensors"), *words)
    assert listing(shop) == before


def test_max_drop_keeps_the_accuracy_on_training_images_and_shows_what_it_tried(shop):
    result = compress("--max-drop", "20", "--data", "data", "--epochs", "0", "-o", "n.safetensors", "--json")
    report = json.loads(result.stdout)
    policy = report["recipe"]["plan"]
    tried = policy["evaluations"]
    assert (policy["name"], policy["points"], len(tried)) == ("max drop", 20, 8)
    chosen = min((one for one in tried if one["drop"] <= 20), key=lambda one: one["kept"])
    assert 1 - report["size"]["removed"]["parameters"] == pytest.approx(chosen["kept"])
    assert chosen["kept"] < 1
    assert result.stderr.count("of the parameters:") == 8
    page = (shop / "n.report.html").read_text()
    assert all(f"{100 * one['kept']:.1f} % of the parameters: {100 * one['accuracy']:.2f} %" in page for one in tried)
    assert "within 20 points" in result.stderr


def test_plan_searches_the_same_model(shop):
    plan("--max-drop", "20", "--data", "data")
    values, _ = planned(shop)
    report = json.loads(compress("--max-drop", "20", "--data", "data", "--epochs", "0", "--json", "--overwrite").stdout)
    assert values["policy"] == report["recipe"]["plan"]


BAD_DROP = {
    "out of range": (plan, ["--max-drop", "200", "--data", "data"], ["--max-drop must lie"]),
    "no data": (plan, ["--max-drop", "1"], ["--max-drop needs images"]),
    "no data to compress": (compress, ["--max-drop", "1"], ["--max-drop needs images"]),
    "samples": (plan, ["--max-drop", "1", "--data", "samples/mnist"], ["has too few"]),
    "fine-tuning": (compress, ["--max-drop", "1", "--data", "data"], ["--max-drop has no effect on it"]),
    "idle data": (plan, ["--tol", "0.1", "--data", "data"], ["images for --max-drop only"]),
}


@pytest.mark.parametrize(("verb", "options", "words"), BAD_DROP.values(), ids=BAD_DROP.keys())
def test_a_drop_that_cannot_be_searched_is_refused(shop, verb, options, words):
    before = listing(shop)
    assert_refused(verb(*options, "-o", "n.safetensors"), *words)
    assert listing(shop) == before
