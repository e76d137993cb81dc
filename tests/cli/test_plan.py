import json
import re

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
    assert {layer["name"]: layer["ranks"] for layer in values["layers"]} == {"1": [], "3": [4], "5": [], "7": []}
    assert values["layers"][1]["parameters"] == 4 * (32 + 32)
    table = " ".join(result.stderr.split())
    assert "scheme" in table
    assert "3 │ Linear │ 32×32 │ matrix │ 4 │ 0.0000" in table


def test_the_tables_of_a_plan_fit_into_eighty_columns(cnn):
    result = run("plan", "cnn.pt", "--arch", "cnn.py:build", *INPUT_OPTIONS, "--tol", "0.7", env={"COLUMNS": "80"})
    tables = result.stderr[result.stderr.index("would be factorised") :].splitlines()
    assert max(map(len, tables[:-1])) <= 80
    assert any(line.split()[1:2] == ["4.qkv"] and "Linear │" in line and "36×12" in line for line in tables)
    assert any("0" in line and "the first layer stays dense (--include-first)" in line for line in tables)


def test_layers_that_stay_dense_for_the_same_reason_share_a_row(shop):
    result = plan("--rank", "4", "--exclude", "[35]")
    assert "would be factorised\n" not in result.stderr
    assert "│ 3, 5   │ excluded by the pattern `[35]`" in result.stderr


def test_json_on_stdout_is_the_plan_that_is_written(shop):
    result = plan("--budget", "0.8", "--json")
    assert json.loads(result.stdout) == json.loads((shop / "out.plan.json").read_text())


def test_the_plan_is_what_compress_does(shop):
    plan("--energy", "0.9")
    compress("--energy", "0.9", "-o", "at_once.safetensors")
    report = json.loads(compress("--plan", "out.plan.json", "-o", "planned.safetensors", "--json").stdout)
    at_once = json.loads((shop / "at_once.report.json").read_text())
    made = [[(layer["scheme"], layer.get("ranks")) for layer in each["layers"]] for each in (report, at_once)]
    assert made[0] == made[1]
    assert ("matrix", [3]) in made[0]
    assert report["recipe"]["plan"] == {"name": "plan", "made_by": {"name": "energy", "energy": 0.9}}
    assert report["recipe"]["guaranteed_tol"] is None  # it may have been edited


def test_an_edited_plan_is_executed(shop):
    plan()

    def by_hand(layers):
        layers["3"]["ranks"] = [2]
        layers["5"] |= {"scheme": "matrix", "ranks": [7], "reason": ""}
        layers["7"]["reason"] = "by hand"

    edit(shop, by_hand)
    report = json.loads(compress("--plan", "out.plan.json", "-o", "new.safetensors", "--json").stdout)
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert (layers["3"]["ranks"], layers["5"]["ranks"], layers["7"]["reason"]) == ([2], [7], "by hand")
    assert report["size"]["compressed"]["parameters"] == 3203 - 2 * 32 * 32 + (2 + 7) * 64


def test_a_layer_that_is_edited_to_be_dense_without_a_reason_stays_so_because_of_the_plan(shop):
    plan()
    edit(shop, lambda layers: layers["3"].update({"scheme": "dense", "reason": ""}))
    report = json.loads(compress("--plan", "out.plan.json", "-o", "new.safetensors", "--json").stdout)
    layer = next(layer for layer in report["layers"] if layer["name"] == "3")
    assert (layer["scheme"], layer["reason"]) == ("dense", "dense in the plan")
    assert load_file(shop / "new.safetensors")["3.weight"].shape == (32, 32)
    assert report["size"]["removed"]["parameters"] == 0


EDITS = {
    "two ranks of a matrix": ({"ranks": [2, 2]}, ["`3` has the ranks 2, 2", "the scheme matrix takes 1 of them"]),
    "no rank": ({"ranks": []}, ["`3` has the ranks none"]),
    "rank 0": ({"ranks": [0]}, ["`3` cannot have rank 0", "ranks up to about 15 remove parameters"]),
    "a rank too large": ({"ranks": [16]}, ["`3` cannot have rank 16", "ranks up to about 15"]),
    "a scheme that does not fit": ({"scheme": "tucker2", "ranks": [2, 2]}, ["`3` cannot have the scheme tucker2"]),
    "no such scheme": ({"scheme": "cp"}, ["`3` has the scheme 'cp'", "known are matrix, spatial, tucker2, split"]),
    "a text": ({"ranks": ["4"]}, ["`3` has the ranks ['4']", '"ranks": [20]']),
    "the first version's rank": ({"ranks": 4}, ["`3` has the ranks 4", '"ranks": [20]']),
}


@pytest.mark.parametrize(("values", "words"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_that_makes_no_sense_is_refused_and_nothing_is_written(shop, values, words):
    plan()
    edit(shop, lambda layers: layers["3"].update(values))
    before = listing(shop)
    assert_refused(compress("--plan", "out.plan.json", "-o", "new.safetensors"), *words)
    assert listing(shop) == before


NO_STATISTICS = ("--arch", "net.py:build", "--plan", "out.plan.json", "-o", "new.safetensors")


def test_a_plan_brings_the_preprocessing_it_was_made_with(shop):
    plan("--calibrate", "data", "--rank", "4")
    result = run("compress", "w.pt", *NO_STATISTICS, "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)["preprocessing"]
    assert (values["input_size"], values["mean"], values["std"]) == ([1, 6, 5], [0.5], [0.25])
    assert values["origin"] == "assumed; input_size, mean, std from the command line"
    compress("--plan", "out.plan.json", "-o", "same.safetensors")
    assert (shop / "same.safetensors").read_bytes() == (shop / "new.safetensors").read_bytes()


@pytest.mark.parametrize("option", [["--mean", "0.4"], ["--std", "1"], ["--std", "0.25", "--mean", "0"]], ids=" ".join)
def test_a_plan_is_not_executed_with_another_normalisation(shop, option):
    plan()
    before = listing(shop)
    refused = run("compress", "w.pt", *NO_STATISTICS, *option)
    assert_refused(refused, "the plan was made for input 1×6×5, mean 0.5, std 0.25", "leave out", "--mean and --std")
    assert listing(shop) == before


def test_a_plan_that_does_not_know_its_preprocessing_leaves_it_to_the_command_line(shop):
    plan()
    values = json.loads((shop / "out.plan.json").read_text())
    del values["preprocessing"]
    (shop / "out.plan.json").write_text(json.dumps(values))
    report = json.loads(compress("--plan", "out.plan.json", "-o", "n.safetensors", "--mean", "0.4", "--json").stdout)
    assert (report["preprocessing"]["mean"], report["preprocessing"]["std"]) == ([0.4], [0.25])


def test_a_plan_for_another_network_is_refused_for_its_checkpoint_and_not_for_its_images(shop):
    plan()
    (shop / "large.py").write_text(
        "from torch import nn\n\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))"
    )
    torch.save({"1.weight": torch.ones(3, 12), "1.bias": torch.ones(3)}, shop / "large.pt")
    refused = run("compress", "large.pt", "--arch", "large.py:build", "--plan", "out.plan.json", "-o", "n.safetensors")
    assert_refused(refused, "made for another checkpoint")


def test_a_plan_of_the_first_version_is_refused(shop):
    plan()
    values = json.loads((shop / "out.plan.json").read_text()) | {"version": 1}
    for layer in values["layers"]:
        layer["rank"] = (layer.pop("ranks") or [None])[0]
        del layer["parameters"]
    (shop / "out.plan.json").write_text(json.dumps(values))
    refused = compress("--plan", "out.plan.json", "-o", "new.safetensors")
    assert_refused(refused, "the plan has version 1, this program reads 2", "make the plan again")


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
        ('{"version": 2}', "the plan is damaged"),
        ("\xff\xfe", "no plan in `bad.json`"),
        ("[" * 200_000, "no plan in `bad.json`: it is nested too deeply"),
        ('{"version": 2, "policy": {"tol": 1e999}}', "no plan in `bad.json`: 1e999 is out of range"),
        ('{"version": 2, "policy": {}, "version": 2}', "no plan in `bad.json`: it has the key `version` twice"),
    ],
)
def test_what_is_no_plan_is_refused(shop, content, message):
    if content is not None:
        (shop / "bad.json").write_text(content, encoding="latin-1")
    before = listing(shop)
    assert_refused(compress("--plan", "bad.json", "-o", "new.safetensors"), message)
    assert listing(shop) == before


# A network with layers that every scheme fits.
CNN = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), Projection(),
                         nn.Linear(36, 3))

class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 36)

    def forward(self, x):
        return self.qkv(x.mean((2, 3)))
"""


@pytest.fixture
def cnn(shop):
    (shop / "cnn.py").write_text(CNN)
    namespace = {"__name__": "cnn"}
    exec(CNN, namespace)
    torch.manual_seed(0)
    torch.save(namespace["build"]().state_dict(), shop / "cnn.pt")
    return shop


def on_cnn(verb, *args):
    return run(verb, "cnn.pt", "--arch", "cnn.py:build", *INPUT_OPTIONS, *args)


SCHEMES = {
    "auto": None,
    "matrix": {"2": "matrix", "4.qkv": "matrix"},
    "spatial": {"2": "spatial", "4.qkv": "matrix"},
    "tucker2": {"2": "tucker2", "4.qkv": "matrix"},
    "split": {"2": "matrix", "4.qkv": "split"},
}


def schemes(values):
    return {layer["name"]: layer["scheme"] for layer in values["layers"] if layer["scheme"] != "dense"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_planned_where_it_fits_and_carried_out(cnn, scheme):
    planned = json.loads(on_cnn("plan", "--tol", "0.7", "--scheme", scheme, "--json").stdout)
    assert SCHEMES[scheme] in (None, schemes(planned))
    assert planned["policy"].get("scheme") == (None if scheme == "auto" else scheme)
    result = on_cnn("compress", "--plan", "out.plan.json", "-o", "planned.safetensors", "--json")
    at_once = on_cnn("compress", "--tol", "0.7", "--scheme", scheme, "-o", "at_once.safetensors", "--json")
    assert schemes(json.loads(result.stdout)) == schemes(json.loads(at_once.stdout)) == schemes(planned)
    tensors = [load_file(cnn / f"{name}.safetensors") for name in ("planned", "at_once")]
    assert all(torch.equal(tensors[0][key], value) for key, value in tensors[1].items())
    verified = run("verify", "planned.safetensors", "--arch", "cnn.py:build")
    assert (verified.exit_code, verified.stdout) == (0, "ok\n")


def test_a_plan_may_be_edited_to_other_schemes(cnn):
    on_cnn("plan", "--tol", "0.7", "--scheme", "matrix")

    def by_hand(layers):
        layers["2"] |= {"scheme": "tucker2", "ranks": [4, 3]}
        layers["4.qkv"] |= {"scheme": "split", "ranks": [1, 2, 3]}

    edit(cnn, by_hand)
    report = json.loads(on_cnn("compress", "--plan", "out.plan.json", "-o", "n.safetensors", "--json").stdout)
    made = {layer["name"]: layer for layer in report["layers"]}
    assert (made["2"]["ranks"], made["2"]["parameters"]) == ([4, 3], 3 * 8 + 9 * 3 * 4 + 4 * 12)
    assert (made["4.qkv"]["ranks"], made["4.qkv"]["parameters"]) == ([1, 2, 3], 6 * (12 + 12))


def test_schemes_can_be_given_by_pattern_and_the_last_one_holds(cnn):
    options = ("--tol", "0.7", "--layer-scheme", "*=matrix", "--layer-scheme", "2=tucker2", "--layer-rank", "2=3")
    planned = json.loads(on_cnn("plan", *options, "--json").stdout)
    assert schemes(planned) == {"2": "tucker2", "4.qkv": "matrix"}
    assert next(layer["ranks"] for layer in planned["layers"] if layer["name"] == "2") == [3, 3]
    assert planned["policy"]["layer_schemes"] == {"*": "matrix", "2": "tucker2"}
    report = json.loads(on_cnn("compress", *options, "-o", "n.safetensors", "--json").stdout)
    assert report["recipe"]["plan"] == planned["policy"]


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
def test_rounded_ranks_are_multiples_or_full(cnn, scheme):
    planned = json.loads(on_cnn("plan", "--tol", "0.7", "--scheme", scheme, "--round-ranks", "4", "--json").stdout)
    assert planned["policy"]["round_ranks"] == 4
    made = [layer for layer in planned["layers"] if layer["scheme"] != "dense"]
    assert len(made) == 2
    assert all(rank % 4 == 0 for layer in made for rank in layer["ranks"])


def test_what_is_long_stands_in_a_file_and_options_add_to_it(cnn):
    (cnn / "mine.toml").write_text(
        'exclude = ["5"]\n[layer_ranks]\n"*" = 2\n[layer_schemes]\n"2" = "spatial"\n"4.*" = "split"\n'
    )
    options = ("--tol", "0.7", "--include-first", "--include-classifier", "--overrides", "mine.toml")
    planned = json.loads(on_cnn("plan", *options, "--layer-rank", "2=5", "--exclude", "0", "--json").stdout)
    layers = {layer["name"]: (layer["scheme"], layer["ranks"]) for layer in planned["layers"]}
    assert layers == {"0": ("dense", []), "2": ("spatial", [5]), "4.qkv": ("split", [2, 2, 2]), "5": ("dense", [])}
    assert planned["policy"]["layer_ranks"] == {"*": 2, "2": 5}
    again = json.loads(
        on_cnn("plan", *options, "--layer-rank", "2=5", "--exclude", "0", "--json", "--overwrite").stdout
    )
    assert again == planned


BAD_SCHEMES = {
    "scheme of a layer": (["--layer-scheme", "3"], ["--layer-scheme takes PATTERN=SCHEME", "got `3`"]),
    "scheme of nothing": (["--layer-scheme", "=tucker2"], ["--layer-scheme takes PATTERN=SCHEME"]),
    "no such scheme": (["--layer-scheme", "3=cp"], ["no scheme named `cp`", "matrix, spatial, tucker2, split"]),
    "scheme that fits no layer": (
        ["--layer-scheme", "*=spatial"],
        ["the scheme spatial fits none", "fits there: matrix"],
    ),
    "scheme of the first layer": (
        ["--layer-scheme", "1=matrix"],
        ["the first layer stays dense", "add --include-first"],
    ),
    "scheme of no layer": (["--layer-scheme", "nothing=split"], ["`nothing` matches no layer"]),
    "no overrides": (["--overrides", "nowhere.toml"], ["no overrides in `nowhere.toml`: No such file"]),
    "overrides that are none": (["--overrides", "net.py"], ["no overrides in `net.py`"]),
    "overrides of nothing": (["--overrides", "nothing.json"], ["`nothing` matches no layer"]),
    "overrides without sense": (["--overrides", "key.json"], ["has the key `ranks`", "known are exclude, layer_ranks"]),
    "a rank that is none": (["--overrides", "rank.json"], ["gives `3` '4', which is not a whole number"]),
    "a scheme that is none": (["--overrides", "scheme.json"], ["no scheme named `svd`"]),
}


@pytest.mark.parametrize(("options", "words"), BAD_SCHEMES.values(), ids=BAD_SCHEMES.keys())
@pytest.mark.parametrize("verb", [plan, compress], ids=["plan", "compress"])
def test_a_bad_scheme_or_file_is_refused_and_nothing_is_written(shop, verb, options, words):
    (shop / "nothing.json").write_text('{"exclude": ["nothing"]}')
    (shop / "key.json").write_text('{"ranks": {"3": 4}}')
    (shop / "rank.json").write_text('{"layer_ranks": {"3": "4"}}')
    (shop / "scheme.json").write_text('{"layer_schemes": {"3": "svd"}}')
    before = listing(shop)
    assert_refused(verb(*options, "-o", "n.safetensors"), *words)
    assert listing(shop) == before


@pytest.mark.parametrize(
    "options",
    [
        ["--scheme", "cp"],
        ["--round-ranks", "0"],
        ["--round-ranks", "many"],
        ["--round-ranks", "9" * 30],
        ["--seed", "-1"],
        ["--seed", str(2**32)],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_nothing_is_written(shop, options):
    before = listing(shop)
    result = plan(*options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert listing(shop) == before


BAD = {
    "tolerance": (["--tol", "2"], ["--tol"]),
    "two policies": (["--rank", "2", "--energy", "0.5"], ["--energy and --rank exclude each other"]),
    "budget": (["--max-macs", "10"], ["cannot be met", "multiply-accumulates"]),
    "folder": (["-o", "nowhere/p.json"], ["no folder `nowhere`"]),
    "existing": (["-o", "out.report.json"], ["`out.report.json` exists", "--overwrite"]),
    "own code": (["-o", "net.py"], ["`net.py` is read by the same command", "-o"]),
    "checkpoint": (["-o", "w.pt"], ["`w.pt` is read by the same command", "-o"]),
    "checkpoint, overwritten": (["-o", "w.pt", "--overwrite"], ["`w.pt` is read by the same command", "-o"]),
    "device": (["-o", "/dev/null", "--overwrite"], ["is a device or a pipe", "-o"]),
    "no source": (["--calibrate", ""], ["--calibrate needs a source of images"]),
    "no calibration": (["--calibrate", "data", "--no-calibration"], ["--calibrate and --no-calibration exclude"]),
    "endless rank": (["--layer-rank", "3=" + "9" * 5000], ["--layer-rank takes PATTERN=RANK"]),
    "endless size": (["--input-size", "1,6," + "9" * 5000], ["--input-size takes 3 positive numbers"]),
    "energy of all but rounding": (["--energy", "1e-17"], ["--energy must lie strictly between 0 and 1"]),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_option_is_refused_and_nothing_is_written(shop, options, words):
    before = listing(shop)
    assert_refused(plan(*options), *words)
    assert listing(shop) == before


IDLE = {
    "--tol": ["0.2"],
    "--budget": ["0.5"],
    "--scheme": ["matrix"],
    "--exclude": ["3"],
    "--layer-rank": ["3=2"],
    "--layer-scheme": ["3=matrix"],
    "--overrides": ["mine.toml"],
    "--calibrate": ["data"],
    "--include-first": [],
    "--allow-zero-layers": [],
}


@pytest.mark.parametrize(("option", "values"), IDLE.items(), ids=IDLE)
def test_an_option_that_a_plan_makes_idle_is_refused_by_name(shop, option, values):
    (shop / "mine.toml").write_text('exclude = ["3"]')
    refused = compress("--plan", "out.plan.json", option, *values, "-o", "n.safetensors")
    assert_refused(refused, f"--plan and {option} exclude each other: a plan leaves nothing to plan")


def test_a_plan_is_not_fine_tuned(shop):
    plan()
    tuned = compress("--plan", "out.plan.json", "--data", "data", "--epochs", "1", "-o", "n.safetensors")
    assert_refused(tuned, "a plan is executed without fine-tuning, --epochs has no effect on it")


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
    assert "for the activations of 40 images of data" in " ".join(report["verdict"])


def test_the_number_of_calibration_images_is_told_and_recorded(shop):
    done = plan("--rank", "8", "--calibrate", "data")
    assert "• calibrating with 60 images of data\n• WARNING: 60 images are few to calibrate with" in done.stderr
    values, _ = planned(shop)
    assert values["calibration"] == {"data": "data", "images": 60, "seed": 0}
    done = compress("--plan", "out.plan.json", "-o", "n.safetensors", "--json")
    assert "calibrating with 60 images of data" in done.stderr
    assert json.loads(done.stdout)["recipe"]["calibration"] == values["calibration"]


def test_a_plan_whose_images_are_gone_names_itself_and_no_option(shop):
    plan("--rank", "8", "--calibrate", "data")
    (shop / "data").rename(shop / "moved")
    refused = compress("--plan", "out.plan.json", "-o", "n.safetensors")
    assert_refused(refused, "the plan's calibration: no data at `data`", "make the plan again")


def test_a_calibrated_tolerance_promises_nothing_of_the_weights(shop):
    report = json.loads(compress("--tol", "0.3", "--calibrate", "data", "-o", "n.safetensors", "--json").stdout)
    assert report["recipe"]["guaranteed_tol"] is None


def test_fine_tuning_starts_from_a_calibrated_truncation(shop):
    options = ("--data", "data", "--epochs", "1", "--max-rank", "4", "--distill", "0", "--lr", "1e-9")
    reports = {}
    for name, more in {"plain": ("--no-calibration",), "calibrated": ()}.items():
        result = compress(*options, *more, "-o", f"{name}.safetensors", "--json")
        assert result.exit_code == 0, result.stderr
        reports[name] = json.loads(result.stdout)
    assert "calibration" not in reports["plain"]["recipe"]
    assert reports["calibrated"]["recipe"]["calibration"] == {"data": "data", "images": 60, "seed": 0}
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
    assert (layers["3"]["ranks"], layers["5"]["scheme"]) == ([8], "dense")
    assert layers["5"]["reason"] == "excluded by the pattern `5`"


def test_ranks_can_be_given_by_pattern(shop):
    options = ("--rank", "8", "--layer-rank", "3=2", "--include-first")
    plan(*options)
    _, layers = planned(shop)
    assert [layers[name]["ranks"] for name in "135"] == [[8], [2], [8]]
    report = json.loads(compress(*options, "-o", "n.safetensors", "--json").stdout)
    assert report["recipe"]["plan"]["layer_ranks"] == {"3": 2}
    assert re.search(r"given ranks</th><td[^>]*>3: 2</td>", (shop / "n.report.html").read_text())
    tolerant = json.loads(compress("--tol", "0.5", "--layer-rank", "3=1", "-o", "m.safetensors", "--json").stdout)
    assert tolerant["recipe"]["guaranteed_tol"] is None


BAD_CALIBRATION = {
    "rank of a layer": (["--layer-rank", "3"], ["--layer-rank takes PATTERN=RANK"]),
    "rank of no layer": (["--layer-rank", "nothing=3"], ["`nothing` matches no layer"]),
    "rank of the classifier": (
        ["--layer-rank", "7=1"],
        ["`7`: the classifier stays dense", "add --include-classifier"],
    ),
    "rank of an excluded layer": (
        ["--layer-rank", "3=4", "--exclude", "[3]"],
        ["`3`: excluded by", "leave out the exclusion `[3]`"],
    ),
    "rank too large": (["--layer-rank", "3=16"], ["`3` cannot have rank 16", "from 1 to 15"]),
    "no such folder": (["--calibrate", "nowhere"], ["no data at `nowhere`", "--calibrate takes any folder of images"]),
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


def test_a_drop_that_is_larger_on_the_test_images_is_told_by_compress_and_evaluate(shop):
    result = compress("--max-drop", "0.5", "--data", "data", "--epochs", "0", "-o", "n.safetensors", "--json")
    report = json.loads(result.stdout)
    models = report["evaluations"][0]["models"]
    drop = 100 * (models["baseline"]["clean"]["accuracy"] - models["compressed"]["clean"]["accuracy"])
    assert drop > 0.5  # the network knows nothing, and sixty images say little
    warning = f"WARNING: {drop:.2f} points are lost on these 30 images, more than the 0.5 allowed"
    assert warning in result.stderr
    assert any(sentence.startswith(warning) for sentence in report["verdict"])
    assert warning in run("evaluate", "n.safetensors", "--arch", "net.py:build", "--data", "data").stderr


def test_a_budget_that_the_whole_network_meets_is_told_as_such(shop):
    result = compress("--max-params", "4000", "-o", "n.safetensors")
    assert "No layer was factorised: the whole network is within the budget." in result.stderr


def test_a_search_records_how_many_images_there_were(shop):
    plan("--max-drop", "20", "--data", "data")
    values, _ = planned(shop)
    assert values["policy"]["images"] == 60


def test_a_search_without_images_is_refused_before_anything_is_read(shop):
    (shop / "w.pt").unlink()
    for options in (["--max-drop", "1"], ["--max-drop", "1", "--data", "samples/mnist"]):
        assert_refused(plan(*options, "--calibrate", "data"), "--max-drop needs images")
        assert_refused(compress(*options, "--epochs", "0"), "--max-drop needs images")


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
    "idle data": (plan, ["--tol", "0.1", "--data", "data"], ["images for --max-drop only"]),
}


@pytest.mark.parametrize(("verb", "options", "words"), BAD_DROP.values(), ids=BAD_DROP.keys())
def test_a_drop_that_cannot_be_searched_is_refused(shop, verb, options, words):
    before = listing(shop)
    assert_refused(verb(*options, "-o", "n.safetensors"), *words)
    assert listing(shop) == before


def test_of_several_patterns_the_one_named_last_holds_even_if_it_was_named_before(shop):
    options = ["--layer-rank", "3=2", "--layer-rank", "[35]=3", "--layer-rank", "3=4"]
    done = plan("--tol", "0.5", *options)
    assert done.exit_code == 0, done.stderr
    layers = {layer["name"]: layer["ranks"] for layer in json.loads((shop / "out.plan.json").read_text())["layers"]}
    assert (layers["3"], layers["5"]) == ([4], [3])


@pytest.mark.parametrize("options", [["--rank", "10"], ["--tol", "0.1", "--layer-rank", "3=10"]])
def test_a_rank_that_is_no_multiple_of_the_rounding_is_refused(shop, options):
    done = plan(*options, "--round-ranks", "8")
    assert done.exit_code == 1
    assert "error: rank 10 is no multiple of 8" in done.stderr


def test_a_plan_with_what_is_no_json_is_refused(shop):
    (shop / "bad.plan.json").write_text('{"version": 2, "policy": {"tol": NaN}}')
    done = compress("--plan", "bad.plan.json")
    assert done.exit_code == 1
    assert "NaN is no number in JSON" in done.stderr


def test_neither_a_plan_nor_overrides_are_replaced_by_what_is_made_of_them(shop):
    plan("-o", "mine.report.json")
    (shop / "over.json").write_text('{"exclude": ["5"]}')
    before = listing(shop)
    told = "read by the same command"
    assert_refused(plan("-o", "net.py", "--overwrite"), told)
    assert_refused(compress("--plan", "mine.report.json", "-o", "mine.safetensors", "--overwrite"), told)
    assert_refused(plan("--overrides", "over.json", "-o", "over.json", "--overwrite"), told)
    assert listing(shop) == before


@pytest.mark.parametrize(
    "values",
    [
        {"std": [0.0]},
        {"std": ["nan"]},
        {"mean": [0.5, 0.5]},
        {"interpolation": "foo"},
        {"crop_pct": -1},
        {"input_size": "128"},
        {"input_size": [1, 6.0, 5]},
    ],
    ids=str,
)
def test_a_plan_with_images_that_cannot_be_is_refused(shop, values):
    plan()
    edited = json.loads((shop / "out.plan.json").read_text())
    edited["preprocessing"] |= values
    (shop / "out.plan.json").write_text(json.dumps(edited))
    before = listing(shop)
    assert_refused(compress("--plan", "out.plan.json", "-o", "n.safetensors"), "the plan is damaged")
    assert listing(shop) == before
