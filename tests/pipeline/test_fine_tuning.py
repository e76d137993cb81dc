import gzip
import json
import os
import signal

import pytest
import torch
from command import run
from idx_files import idx_bytes, write_idx_pair
from interrupted import PLACE, interrupted
from two_processes import finish, start_two
from workshop import INPUT, INPUT_OPTIONS, listing, make_network, report_of, sha256, training

from lrcompress.checkpoint import LoadOptions
from lrcompress.data.idx import read_idx
from lrcompress.errors import DataError, OptionError, OutputError, TrainingError
from lrcompress.pipeline import CompressOptions, LayerOptions, MaxDrop, Observer, compress, fine_tuning
from lrcompress.pipeline.fine_tuning import starting_policy
from lrcompress.plan import Budget, Calibration, Energy, Tolerance, TrainingStart, UniformRank, WideStart

pytestmark = pytest.mark.usefixtures("_short_timing")
STEPS = 6  # of `training()` on the 60 images of the workshop, of which 6 are held out: two epochs of 20, 20 and 14


def fine_tune(shop, output="new.safetensors", *, observer=None, values=None, **settings):
    load = LoadOptions(arch="net.py:build", preprocessing=INPUT)
    options = {"load": load, "data": "data", "training": training(**settings), **(values or {})}
    return compress("w.pt", output, CompressOptions(**options), observer=observer)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"policy": Tolerance(0.2)}, TrainingStart(0.2)),
        ({"policy": Tolerance(0.2), "max_rank": 5}, TrainingStart(0.2, max_rank=5)),
        ({"policy": Energy(0.75)}, TrainingStart(0.5)),
        ({"policy": Budget(fraction=0.1), "anneal": 3.0}, WideStart(Budget(fraction=0.1), 3.0)),
        ({"policy": UniformRank(4)}, UniformRank(4)),
        ({"policy": Budget(fraction=0.999), "max_drop": 1.5}, MaxDrop(1.5, seed=7)),
    ],
    ids=str,
)
def test_a_fine_tuning_starts_from_what_its_policy_would_do(settings, start):
    assert vars(starting_policy(training(**settings), seed=7)) == vars(start)
    assert type(starting_policy(training(**settings), seed=7)) is type(start)


def test_a_run_without_interruption_leaves_its_outputs_only(shop):
    before = set(listing(shop))
    fine_tune(shop, save_seconds=0.0)
    assert set(listing(shop)) - before == {"new.safetensors", "new.report.json", "new.report.html"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_a_run_that_was_asked_to_end_goes_on_to_the_same_bytes(shop, monkeypatch, step, number):
    before = set(listing(shop))
    with monkeypatch.context() as patch:
        patch.setattr(PLACE, interrupted(step, number))
        with pytest.raises(TrainingError, match=f"stopped in step {step} of {STEPS}") as stopped:
            fine_tune(shop)
    assert "--resume" in stopped.value.hint
    assert set(listing(shop)) - before == {"new.unfinished.pt"}
    said = []
    fine_tune(shop, values={"resume": True}, observer=Observer(on_stage=said.append))
    assert any("going on from `new.unfinished.pt`" in text for text in said)
    assert set(listing(shop)) - before == {"new.safetensors", "new.report.json", "new.report.html"}
    assert sha256(shop / "new.safetensors") == sha256(shop / "tuned.safetensors")  # the same, uninterrupted
    assert report_of(shop / "new.safetensors")["training_log"] == report_of(shop / "tuned.safetensors")["training_log"]


def test_with_nothing_to_resume_a_run_begins(shop):
    said = []
    fine_tune(shop, values={"resume": True}, observer=Observer(on_stage=said.append))
    assert "nothing to resume: starting anew" in said
    assert sha256(shop / "new.safetensors") == sha256(shop / "tuned.safetensors")


@pytest.fixture
def stopped(shop, monkeypatch):
    """The folder with new.unfinished.pt in it."""
    with monkeypatch.context() as patch:
        patch.setattr(PLACE, interrupted(3, signal.SIGTERM))
        with pytest.raises(TrainingError):
            fine_tune(shop)
    return shop


def other_checkpoint(shop):
    torch.save(make_network(seed=1).state_dict(), shop / "w.pt")
    return {}


def more_images(shop):
    write_idx_pair(shop / "data", "train", count=66)
    return {}


def other_data(shop):
    (shop / "data").rename(shop / "images")
    return {"values": {"data": "images"}}


# What is different, and what the refusal says of it.
OTHERS = {
    "learning rate": (lambda shop: {"lr": 0.5}, ": --lr 0.5, was 0.001"),
    "epochs": (lambda shop: {"epochs": 7}, ": --epochs 7, was 2"),
    "tolerance": (lambda shop: {"policy": Tolerance(0.11)}, ": --tol 0.11, was 0.1"),
    "layers": (lambda shop: {"values": {"layers": LayerOptions(exclude=("5",))}}, ": --exclude 5, was no --exclude"),
    "calibration": (lambda shop: {"values": {"calibration": Calibration("data", 20)}}, "data, was --no-calibration"),
    "checkpoint": (other_checkpoint, ": a checkpoint with SHA-256 "),
    "number of images": (more_images, ": 66 training images, was 60 training images"),
    "data": (other_data, "/images, was "),
}


@pytest.mark.parametrize(("change", "words"), OTHERS.values(), ids=OTHERS.keys())
def test_a_state_is_not_for_another_run(stopped, change, words):
    changes = change(stopped)
    before = listing(stopped)
    values = {"resume": True, **changes.pop("values", {})}
    said = []
    with pytest.raises(OptionError, match=r"`new\.unfinished\.pt` is the state of another run") as refused:
        fine_tune(stopped, values=values, observer=Observer(on_stage=said.append), **changes)
    assert words in refused.value.message
    assert not any("planning" in text or "calibrating" in text for text in said)
    assert "--overwrite" in refused.value.hint
    assert listing(stopped) == before


def test_a_state_is_never_lost_without_a_word(stopped):
    before = listing(stopped)
    for values in ({"training": training()}, {"training": None, "policy": Tolerance(0.1)}):
        with pytest.raises(OptionError, match="is the state of a run that has not ended") as refused:
            fine_tune(stopped, values=values)
        assert "--resume" in refused.value.hint
        assert listing(stopped) == before
    fine_tune(stopped, values={"overwrite": True}, epochs=1)
    assert not (stopped / "new.unfinished.pt").exists()
    assert len(report_of(stopped / "new.safetensors")["training_log"]) == 2


def test_the_state_of_another_output_is_left_alone(stopped):
    before = (stopped / "new.unfinished.pt").read_bytes()
    fine_tune(stopped, "other.safetensors")
    assert (stopped / "new.unfinished.pt").read_bytes() == before


def test_a_damaged_state_is_refused_and_kept(stopped):
    state = stopped / "new.unfinished.pt"
    state.write_bytes(state.read_bytes()[:5000])
    before = listing(stopped)
    with pytest.raises(OutputError, match="damaged") as refused:
        fine_tune(stopped, values={"resume": True})
    assert refused.value.hint
    assert listing(stopped) == before


def test_a_disk_that_is_full_does_not_end_the_run(shop, monkeypatch):
    said, failures = [], []

    def full(path, content, **_):
        failures.append(path)
        raise OutputError("cannot write: No space left on device", hint="make room")

    monkeypatch.setattr("lrcompress.pipeline.unfinished.write_atomically", full)
    fine_tune(shop, observer=Observer(on_stage=said.append), save_seconds=0.0)
    assert len(failures) == STEPS + 1
    assert sum("could not be saved: cannot write: No space left" in text for text in said) == STEPS + 1
    assert sha256(shop / "new.safetensors") == sha256(shop / "tuned.safetensors")


# What is still to be done when the training is over, and where the program is asked to end.
AFTER = ["measure_latency", "evaluate_models", "render_documents", "save_artifact"]


@pytest.mark.parametrize("place", AFTER)
def test_a_training_that_is_over_survives_an_interruption_and_is_not_repeated(shop, monkeypatch, place):
    before = set(listing(shop))

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"lrcompress.pipeline.compression.{place}", interrupt)
        with pytest.raises(TrainingError, match="interrupted; no file is half-written") as stopped:
            fine_tune(shop)
    assert stopped.value.hint == "the training is over and kept: --resume goes on with measuring and writing"
    assert set(listing(shop)) - before == {"new.unfinished.pt"}
    steps, said = [], []
    observer = Observer(on_training=steps.append, on_stage=said.append)
    fine_tune(shop, values={"resume": True}, observer=observer)
    assert steps == []
    assert not any("planning" in text for text in said)
    assert set(listing(shop)) - before == {"new.safetensors", "new.report.json", "new.report.html"}
    assert sha256(shop / "new.safetensors") == sha256(shop / "tuned.safetensors")
    assert report_of(shop / "new.safetensors")["training_log"] == report_of(shop / "tuned.safetensors")["training_log"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_request_to_end_while_the_last_epoch_is_measured_keeps_the_training(shop, monkeypatch, number):
    original = fine_tuning.fine_tune_

    def fine_tune_(*args, on_progress, **others):
        def signalled(progress):
            on_progress(progress)
            if progress.step == STEPS and progress.epoch_ended:
                os.kill(os.getpid(), number)

        return original(*args, on_progress=signalled, **others)

    with monkeypatch.context() as patch:
        patch.setattr(PLACE, fine_tune_)
        with pytest.raises(TrainingError, match="stopped after the last step") as stopped:
            fine_tune(shop)
    assert "--resume goes on with measuring" in stopped.value.hint
    fine_tune(shop, values={"resume": True})
    assert sha256(shop / "new.safetensors") == sha256(shop / "tuned.safetensors")


def test_a_disk_that_is_full_when_the_result_is_written_keeps_the_training(shop, monkeypatch):
    def full(*_, **__):
        raise OutputError("cannot write `new.safetensors`: No space left on device", hint="name another place with -o")

    monkeypatch.setattr("lrcompress.pipeline.compression.save_artifact", full)
    with pytest.raises(OutputError, match="No space left") as refused:
        fine_tune(shop)
    assert refused.value.hint.startswith("make room; the training is over and kept: --resume")


def test_what_is_wrong_with_a_layer_is_told_by_its_name_in_the_network(shop):
    with pytest.raises(TrainingError, match=r"in step \d+ of 6") as refused:
        fine_tune(shop, lr=1e30)
    assert "network." not in refused.value.message


def test_a_training_that_ruins_the_network_is_told_in_the_verdict_and_the_truncation_written(shop):
    # Labels that the network knows: its own answers.
    model = make_network()
    write_idx_pair(shop / "data", "train", count=600)
    images = read_idx(shop / "data" / "train-images-idx3-ubyte.gz")
    with torch.no_grad():
        answers = model((images[:, None] / 255 - 0.5) / 0.25).argmax(1)
    labels = shop / "data" / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(answers.numpy().astype("uint8"))))
    said = []
    settings = {"policy": Budget(fraction=0.8), "lr": 3.0, "epochs": 1, "distill": 0.0}
    report = fine_tune(shop, observer=Observer(on_stage=said.append), **settings)
    tuning = report["recipe"]["fine_tuning"]
    assert tuning["chosen_epoch"] == 0
    assert tuning["held_out_accuracy"] == tuning["held_out_accuracy_before"]
    assert tuning["warnings"][-1].startswith("training lost ")
    for warning in tuning["warnings"]:
        assert f"WARNING: {warning}" in said
        assert f"WARNING: {warning}." in report["verdict"]


def test_of_two_processes_one_is_killed_and_the_other_tells_that_two_can_go_on(shop):
    arguments = ["w.pt", "--arch", "net.py:build", *INPUT_OPTIONS, "--data", "data", "-o", "two.safetensors"]
    arguments += ["--epochs", "2", "--batch-size", "20", "--no-timing"]
    before = set(listing(shop))
    script = interrupted.__globals__["__file__"]
    killed = [script, "4", str(int(signal.SIGKILL)), "1", "compress", *arguments]
    (code, stdout, stderr), (other_code, *_) = finish(start_two(killed, shop))
    assert (code, stdout, other_code) == (1, "", -signal.SIGKILL), stderr
    lines = [line for line in stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], stderr
    assert "another process of the run has ended" in lines[0]
    assert "--resume" in lines[1]
    assert set(listing(shop)) - before == {"two.unfinished.pt"}
    told = run("inspect", "two.unfinished.pt", "--json")
    assert json.loads(told.stdout)["resume"].startswith("torchrun --nproc-per-node 2 -m lrcompress compress w.pt")
    assert "gloo" not in stderr
    alone = run("compress", *arguments, "--resume")
    assert (alone.exit_code, alone.stdout) == (0, "two.safetensors\n"), alone.stderr
    assert "was started with 2 processes and goes on with 1 process" in alone.stderr


def test_of_two_processes_with_the_same_error_one_tells(shop):
    arguments = ["w.pt", "--arch", "net.py:build", *INPUT_OPTIONS, "--data", "data", "-o", "two.safetensors"]
    arguments += ["--batch-size", "20", "--lr", "1e30"]
    ended = finish(start_two(["-m", "lrcompress", "compress", *arguments], shop))
    told = [line for _, _, stderr in ended for line in stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [code for code, *_ in ended] == [1, 1]
    assert [line.split(":")[0] for line in told] == ["error", "hint"], ended
    assert "in step " in told[0]


def test_of_several_processes_only_the_first_one_plans(shop, monkeypatch):
    def no_work(*_, **__):
        raise AssertionError("worked")

    def receive(value):
        assert value is None
        raise EOFError

    monkeypatch.setattr("lrcompress.pipeline.compression.world", lambda: (1, 2))
    monkeypatch.setattr("lrcompress.pipeline.compression.agree", receive)
    for name in ("_plan", "_check_places", "check_plausible"):
        monkeypatch.setattr(f"lrcompress.pipeline.compression.{name}", no_work)
    with pytest.raises(EOFError):
        fine_tune(shop)


def test_of_several_processes_the_first_one_writes(shop, monkeypatch):
    before = listing(shop)
    monkeypatch.setattr("lrcompress.pipeline.compression.world", lambda: (1, 2))
    assert fine_tune(shop, values={"training": None, "policy": Tolerance(0.1)}) == {}
    assert listing(shop) == before
    result = run("compress", "w.pt", "--arch", "net.py:build", *INPUT_OPTIONS, "-o", "new.safetensors")
    assert (result.exit_code, result.stdout) == (0, "")
    assert listing(shop) == before


def test_too_few_images_are_refused_and_nothing_is_left(shop):
    write_idx_pair(shop / "data", "train", count=2)
    before = listing(shop)
    with pytest.raises(DataError, match="too few"):
        fine_tune(shop)
    assert listing(shop) == before


def test_what_the_log_says_of_layers_is_by_their_names_in_the_network(shop):
    log = report_of(shop / "tuned.safetensors")["training_log"]
    known = dict(make_network().named_modules())
    assert all(name in known for entry in log for name in (*entry["ranks"], *entry["cores"]))
    assert not any(name.startswith("network.") for entry in log for name in entry["ranks"])
