import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from checkpoint_files import Marking, claim_header, write_safetensors, write_zip
from command import assert_refused, run
from idx_files import write_idx_pair
from interrupted import PLACE, interrupted
from PIL import Image
from workshop import INPUT_OPTIONS, listing, make_network

from lrcompress.pipeline import compression

OWN = ("--arch", "net.py:build", *INPUT_OPTIONS)
TRAIN = ("--data", "data", "--epochs", "2", "--batch-size", "20", "--crop", "0")


def compress(*args, checkpoint="w.pt", own=True):
    return run("compress", checkpoint, *(OWN if own else ()), *args)


def test_the_path_is_all_that_goes_to_stdout(shop):
    result = compress("--tol", "0.1", "-o", "new.safetensors")
    assert (result.exit_code, result.stdout) == (0, "new.safetensors\n")
    assert "net.py:build" in result.stderr
    assert "1 layer is factorised within" in result.stderr
    assert {"new.safetensors", "new.report.json", "new.report.html"} <= set(listing(shop))


def test_the_default_output_is_out_safetensors(shop):
    for name in ("out.safetensors", "out.report.json", "out.report.html"):
        (shop / name).unlink()
    assert compress().stdout == "out.safetensors\n"
    assert (shop / "out.safetensors").exists()


def test_json_on_stdout_is_the_report(shop):
    result = compress("-o", "new.safetensors", "--json")
    assert json.loads(result.stdout) == json.loads((shop / "new.report.json").read_text())


@pytest.mark.parametrize("scheme", ["auto", "matrix", "tucker2"])
def test_fine_tuning_takes_what_chooses_schemes_and_ranks(shop, scheme):
    asked = ("--budget", "0.6", "--scheme", scheme, "--round-ranks", "4")
    result = compress(*TRAIN, *asked, "-o", "new.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert {layer["scheme"] for layer in report["layers"]} == {"matrix", "dense"}  # what fits linear layers
    assert all(rank % 4 == 0 for layer in report["layers"] for rank in layer.get("ranks", []))
    size = report["size"]
    assert size["compressed"]["parameters"] <= 0.6 * size["baseline"]["parameters"]
    assert report["recipe"]["fine_tuning"]["policy"] == {"name": "budget", "fraction": 0.6}


def test_a_largest_drop_is_fine_tuned_for(shop):
    result = compress(*TRAIN, "--max-drop", "60", "-o", "new.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["recipe"]["plan"]["name"] == "max drop"
    assert report["recipe"]["fine_tuning"]["target_reached"] in (True, False)


@pytest.mark.parametrize(
    ("options", "calibrated"),
    [((), True), (("--no-calibration",), False)],
    ids=["by default", "no calibration"],
)
def test_a_fine_tuning_starts_from_activations_unless_told_otherwise(shop, options, calibrated):
    result = compress(*TRAIN, *options, "-o", "new.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    assert ("calibrating with 60 images" in result.stderr) is calibrated
    assert ("calibration" in json.loads(result.stdout)["recipe"]) is calibrated


def test_without_timing_nothing_is_said_of_speed(shop, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("timed")

    timed = json.loads(compress("-o", "timed.safetensors", "--json").stdout)
    monkeypatch.setattr(compression, "measure_latency", never)
    report = json.loads(compress("--no-timing", "-o", "untimed.safetensors", "--json").stdout)
    assert report["latency"] is None
    assert timed["latency"]["rounds"] > 0
    said = [any("of the original's time" in sentence for sentence in each["verdict"]) for each in (timed, report)]
    assert said == [True, False]
    assert "ms per batch" not in (shop / "untimed.report.html").read_text()
    assert (shop / "untimed.safetensors").read_bytes() == (shop / "timed.safetensors").read_bytes()


def test_fine_tuning_is_told_and_recorded(shop):
    result = compress(*TRAIN, "--beta", "0.05", "--penalty", "paper", "--max-rank", "6", "-o", "new.safetensors")
    assert result.exit_code == 0
    assert "epoch 1/2" in result.stderr
    tuning = json.loads((shop / "new.report.json").read_text())["recipe"]["fine_tuning"]
    assert (tuning["beta"], tuning["penalty"], tuning["max_rank"], tuning["epochs"]) == (0.05, "paper", 6, 2)


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ([], {"name": "tolerance", "tol": 0.1}),
        (["--energy", "0.9"], {"name": "energy", "energy": 0.9}),
        (["--rank", "5"], {"name": "uniform rank", "rank": 5}),
        (["--budget", "0.8"], {"name": "budget", "fraction": 0.8}),
        (["--max-params", "2800"], {"name": "budget", "parameters": 2800}),
        (["--max-macs", "2700"], {"name": "budget", "macs": 2700}),
    ],
    ids=str,
)
def test_every_way_to_ask_for_ranks_is_recorded_and_kept(shop, options, policy):
    report = json.loads(compress(*options, "-o", "new.safetensors", "--json").stdout)
    assert report["recipe"]["plan"] == policy
    for option, key in (("parameters", "parameters"), ("macs", "macs")):
        if option in policy:
            assert policy[option] - 64 < report["size"]["compressed"][key] <= policy[option]
    if "rank" in policy:
        assert [layer["ranks"] for layer in report["layers"] if "ranks" in layer] == [[5], [5]]


def test_a_state_dict_of_timm_needs_its_file_only(shop):
    torch.manual_seed(0)
    write_zip(timm.create_model("test_resnet", num_classes=5).state_dict(), shop / "resnet.pt")
    result = compress("--tol", "0.5", "-o", "small.safetensors", checkpoint="resnet.pt", own=False)
    assert (result.exit_code, result.stdout) == (0, "small.safetensors\n")
    assert "timm/test_resnet (by fingerprint; 5 classes)" in result.stderr


def test_a_mistyped_checkpoint_is_told_before_an_existing_output(shop):
    assert_refused(compress(checkpoint="v.pt"), "no checkpoint at `v.pt`")


@pytest.mark.parametrize("name", ["new.safetensors", "new.report.json", "new.report.html"])
def test_existing_outputs_are_kept_unless_they_may_be_overwritten(shop, name):
    (shop / name).write_text("precious")
    before = listing(shop)
    assert_refused(compress("-o", "new.safetensors"), f"`{name}` exists", "--overwrite")
    assert listing(shop) == before
    assert compress("-o", "new.safetensors", "--overwrite").exit_code == 0
    assert (shop / name).read_bytes() != b"precious"


def weights():
    return dict(make_network().state_dict())


def with_value(value):
    tensors = weights()
    tensors["3.weight"][0, 0] = value
    return tensors


def all_zero():
    return {key: value * 0 if key == "3.weight" else value for key, value in weights().items()}


def one_missing():
    tensors = weights()
    del tensors["5.bias"]
    return tensors


def whole():
    import io

    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    return buffer.getvalue()


# What lies in bad.pt, and the words of the answer.
BAD_FILES = {
    "missing": (lambda path: None, ["no checkpoint at `bad.pt`"]),
    "empty": (lambda path: path.write_bytes(b""), ["is empty"]),
    "cut short": (lambda path: path.write_bytes(whole()[:1500]), ["cut short"]),
    "random": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(2000)), ["neither a torch nor"]),
    "folder": (lambda path: path.mkdir(), ["is a folder without config.json"]),
    "header too long": (
        lambda path: path.write_bytes(claim_header(write_safetensors(weights(), path).read_bytes(), 10**9)),
        ["claims a header of 1000000000 bytes"],
    ),
    "malicious": (lambda path: write_zip(Marking(path.with_name("marker")), path), ["could run code", "system"]),
    "pickled network": (lambda path: write_zip(make_network(), path), ["torch.nn.modules.linear.Linear", "state_dict"]),
    "NaN": (lambda path: write_zip(with_value(float("nan")), path), ["NaN or infinite values in `3.weight`"]),
    "infinite": (lambda path: write_zip(with_value(float("inf")), path), ["NaN or infinite values in `3.weight`"]),
    "all-zero layer": (
        lambda path: write_zip(all_zero(), path),
        ["all weights of `3` are zero", "--allow-zero-layers"],
    ),
    "one key missing": (lambda path: write_zip(one_missing(), path), ["1 missing (5.bias)"]),
    "no state dict": (lambda path: write_zip({"epoch": 3}, path), ["holds no state dict"]),
}


@pytest.mark.parametrize(("write", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_checkpoint_is_refused_and_nothing_is_written(shop, write, words):
    write(shop / "bad.pt")
    before = listing(shop)
    assert_refused(compress("-o", "new.safetensors", checkpoint="bad.pt"), *words)
    assert listing(shop) == before


def test_all_zero_layers_stay_as_they_are_where_that_is_wanted(shop):
    write_zip(all_zero(), shop / "zero.pt")
    result = compress("--allow-zero-layers", "-o", "new.safetensors", checkpoint="zero.pt")
    assert result.exit_code == 0
    layers = json.loads((shop / "new.report.json").read_text())["layers"]
    assert next(layer for layer in layers if layer["name"] == "3")["reason"] == "all its weights are zero"


def write_broken_image(folder):
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (5, 6), 40 * number).save(folder / split / name / f"{number}.png")
    (folder / "train" / "bee" / "2.png").write_bytes(b"no image")


BAD_DATA = {
    "missing": (lambda folder: None, ["no data at `images`"]),
    "no classes": (lambda folder: folder.mkdir(), ["has no images"]),
    "images without classes": (
        lambda folder: (folder.mkdir(), Image.new("L", (5, 6)).save(folder / "a.png")),
        ["outside of class folders"],
    ),
    "an unreadable image": (write_broken_image, ["cannot read the image `images/train/bee/2.png`"]),
    "another number of classes": (
        lambda folder: [write_idx_pair(folder, prefix, count=30, classes=5) for prefix in ("train", "t10k")],
        ["has 5 classes, the network 3"],
    ),
}


@pytest.mark.parametrize(("write", "words"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data_are_refused_and_nothing_is_written(shop, write, words):
    write(shop / "images")
    before = listing(shop)
    result = compress("--data", "images", "--epochs", "1", "--batch-size", "20", "-o", "new.safetensors")
    assert_refused(result, *words)
    assert listing(shop) == before


BAD_OPTIONS = {
    "tolerance 0": (["--tol", "0"], ["--tol must lie strictly between 0 and 1, got 0"]),
    "tolerance 1": (["--tol", "1"], ["--tol"]),
    "tolerance below 0": (["--tol", "-0.1"], ["--tol"]),
    "tolerance nan": (["--tol", "nan"], ["--tol"]),
    "tolerance while training": ([*TRAIN, "--tol", "1.5"], ["--tol"]),
    "two policies": (["--tol", "0.1", "--budget", "0.5"], ["--tol and --budget exclude each other"]),
    "a budget in per cent": (["--budget", "25"], ["--budget must lie strictly between 0 and 1, got 25.0"]),
    "a budget too small": (
        ["--max-params", "9"],
        ["the budget of 9 parameters cannot be met", "has 1,283 of 3,203 (40.1 %)"],
    ),
    "a budget too small for a smallest rank": (
        [*TRAIN, "--budget", "0.6", "--min-rank", "20"],
        ["the budget of 1,921 parameters cannot be met", "a smaller --min-rank"],
    ),
    "a scheme that does not fit": ([*TRAIN, "--layer-scheme", "3=split"], ["the scheme split fits none"]),
    "energy": (["--energy", "99"], ["--energy"]),
    "rank 0": (["--rank", "0"], ["--rank must be at least 1"]),
    "unwritable": (["-o", "nowhere/new.safetensors"], ["no folder `nowhere`", "mkdir"]),
    "output is a folder": (["-o", "data"], ["data"]),
    "not safetensors": (["-o", "new.pt"], ["must end in .safetensors"]),
    "epochs without data": (["--epochs", "3"], ["--epochs needs images", "--data"]),
    "beta without data": (["--beta", "0.1"], ["--beta needs images"]),
    "no device": (["--device", "cuda:99"], ["no device `cuda:99`"]),
    "batch of one": ([*TRAIN[:4], "--batch-size", "1"], ["--batch-size must be at least 2"]),
    "argument without a value": (["--arch-arg", "classes"], ["KEY=VALUE"]),
    "argument that is not taken": (["--arch-arg", "depth=3"], ["depth"]),
    "input size": (["--input-size", "1,28"], ["--input-size takes 3 positive numbers"]),
    "mean": (["--mean", "grey"], ["--mean takes numbers"]),
    "three means of grey images": (
        ["--mean", "0.1,0.2,0.3"],
        ["--mean has 3 values, the network takes images of 1 channel ", "--mean with one value"],
    ),
    "wrong input size": (["--input-size", "3,6,5", "--mean", "0.5"], ["does not take a 3x6x5 image", "--input-size"]),
    "weights key": (["--weights-key", "model"], ["no state dict under `model`"]),
    "arch": (["--arch", "resnet5O"], ["no architecture named `resnet5O`", "resnet50"]),
    "wrong arch": (["--arch", "resnet18"], ["does not fit `timm/resnet18`", "missing (conv1.weight", "unexpected"]),
    "arch without a function": (["--arch", "net.py:make"], ["has no `make`"]),
    "arch without a file": (["--arch", "nets.py:build"], ["no file `nets.py`"]),
    "hub": (["--arch", "net.py:build", "--match-by-order", "--strict-arch", "--tol", "2"], ["--tol"]),
}


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_a_bad_option_is_refused_and_nothing_is_written(shop, options, words):
    before = listing(shop)
    named = [] if "-o" in options else ["-o", "new.safetensors"]
    assert_refused(compress(*named, *options), *words)
    assert listing(shop) == before


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "many"],
        ["--epochs", "-1"],
        ["--no-such-option"],
        ["--penalty", "none"],
        ["--precision", "int8"],
        ["extra"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_nothing_is_written(shop, options):
    before = listing(shop)
    result = compress("-o", "new.safetensors", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert listing(shop) == before


def test_no_permission_is_told_before_the_work_begins(shop, monkeypatch):
    def refuse(**_):  # the superuser may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    result = compress("-o", "new.safetensors")
    assert_refused(result, "cannot write into `.`: Permission denied")
    assert "planning" not in result.stderr


def test_ctrl_c_in_the_middle_of_fine_tuning_leaves_nothing(shop, monkeypatch):
    before = listing(shop)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(PLACE, stop)
    assert_refused(compress(*TRAIN, "-o", "new.safetensors"), "interrupted; no file is half-written")
    assert listing(shop) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_whoever_asks_a_fine_tuning_to_end_is_told_how_to_go_on(shop, monkeypatch, number):
    before = set(listing(shop))
    assert compress(*TRAIN, "-o", "whole.safetensors").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(PLACE, interrupted(4, number))
        result = compress(*TRAIN, "-o", "new.safetensors")
    assert "epoch 1/2" in result.stderr
    assert_refused(result, "stopped in step 4 of 6", "--resume goes on from here")
    assert "new.safetensors" not in listing(shop)
    assert_refused(compress(*TRAIN, "-o", "new.safetensors"), "has not ended", "--resume goes on with it")
    assert_refused(compress(*TRAIN, "--lr", "0.5", "-o", "new.safetensors", "--resume"), "--lr 0.5, was 0.001")
    result = compress(*TRAIN, "-o", "new.safetensors", "--resume")
    assert (result.exit_code, result.stdout) == (0, "new.safetensors\n")
    assert (shop / "new.safetensors").read_bytes() == (shop / "whole.safetensors").read_bytes()
    assert not [name for name in set(listing(shop)) - before if "unfinished" in name or name.endswith(".tmp")]


def test_ctrl_c_after_the_training_keeps_it_and_says_how_to_go_on(shop, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compression, "evaluate_models", stop)
        result = compress(*TRAIN, "-o", "new.safetensors")
    assert_refused(result, "interrupted; no file is half-written", "the training is over and kept: --resume")
    assert_refused(compress(*TRAIN, "-o", "new.safetensors"), "has not ended", "--resume goes on with it")
    resumed = compress(*TRAIN, "-o", "new.safetensors", "--resume")
    assert (resumed.exit_code, resumed.stdout) == (0, "new.safetensors\n")
    assert "epoch 1/2" not in resumed.stderr


def test_a_second_ctrl_c_while_training_says_how_to_go_on(shop, monkeypatch):
    def stop(*_, save, **__):
        save({"step": 3})
        raise KeyboardInterrupt

    monkeypatch.setattr(PLACE, stop)
    assert_refused(compress(*TRAIN, "-o", "new.safetensors"), "interrupted", "--resume goes on from the last state")


def test_a_held_out_share_that_leaves_nothing_is_to_blame_itself(shop):
    result = compress(*TRAIN, "--held-out", "0.9999", "-o", "new.safetensors")
    assert_refused(result, "--held-out 0.9999 leaves 0 of 60 training images", "--held-out 0.1")
    assert "planning" not in result.stderr


def test_few_images_and_a_network_that_guesses_are_told_before_the_work(shop):
    stderr = compress(*TRAIN, "-o", "new.safetensors").stderr
    for words in ("60 training images are few", "about as many as guessing among 3 classes"):
        assert 0 < stderr.index(words) < stderr.index("planning")
    assert stderr.count("WARNING: 60 training") == 1


def test_of_several_processes_the_first_one_tells_of_wrong_options(shop, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = compress("--tol", "1.5", "-o", "new.safetensors")
    assert (result.exit_code, result.output) == (1, "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert_refused(compress("--tol", "1.5", "-o", "new.safetensors"), "--tol must lie strictly between 0 and 1")


def python(*arguments):
    """Starts Python as a shell would, in the current folder."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], env=environment, text=True, stdout=pipe, stderr=pipe)


def test_after_a_kill_the_same_command_goes_on_to_the_same_bytes(shop):
    command = ("compress", "w.pt", *OWN, *TRAIN, "--no-timing")
    assert run(*command, "-o", "whole.safetensors").exit_code == 0
    script = interrupted.__globals__["__file__"]
    killed = python(script, "4", str(int(signal.SIGKILL)), "0", *command, "-o", "new.safetensors")
    stdout, stderr = killed.communicate(timeout=600)
    assert (killed.returncode, stdout) == (-signal.SIGKILL, ""), stderr
    made = {name for name in listing(shop) if name.startswith((".new", "new"))}
    assert made == {"new.unfinished.pt"}
    resumed = run(*command, "-o", "new.safetensors", "--resume")
    assert (resumed.exit_code, resumed.stdout) == (0, "new.safetensors\n"), resumed.stderr
    assert "going on from" in resumed.stderr
    assert (shop / "new.safetensors").read_bytes() == (shop / "whole.safetensors").read_bytes()
    assert not (shop / "new.unfinished.pt").exists()


def test_a_signal_from_outside_ends_a_fine_tuning_with_an_error_and_a_hint(shop):
    process = python(
        "-m", "lrcompress", "compress", "w.pt", *OWN, *TRAIN, "--epochs", "100000", "-o", "new.safetensors"
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("epoch 3/"):
                process.send_signal(signal.SIGTERM)
                break
        stdout, rest = process.communicate(timeout=600)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (1, ""), said
    *_, error, hint = rest.splitlines()
    assert error.startswith("error: stopped in step ")
    assert hint == "hint: --resume goes on from here"
    assert "Traceback" not in rest
    assert {name for name in listing(shop) if name.startswith((".new", "new"))} == {"new.unfinished.pt"}


def test_memory_that_runs_out_is_an_explained_error(shop, monkeypatch):
    def hungry(*_, **__):
        raise MemoryError

    monkeypatch.setattr(compression, "load_checkpoint", hungry)
    assert_refused(compress("-o", "new.safetensors"), "not enough memory")


def test_a_full_disk_is_an_explained_error(shop, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    before = listing(shop)
    monkeypatch.setattr("os.fsync", full)
    assert_refused(compress("-o", "new.safetensors"), "No space left on device")
    assert listing(shop) == before


def test_samples_without_images_are_refused_and_not_ignored():
    assert_refused(run("compress", "nowhere.pt", "--samples", "5"), "--samples needs images", "--data DIR")
