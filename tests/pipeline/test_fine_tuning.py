import signal

import pytest
import torch
from command import assert_refused, run
from idx_files import write_idx_pair
from interrupted import PLACE, interrupted
from two_processes import finish, start_two
from workshop import INPUT, INPUT_OPTIONS, listing, make_network, report_of, sha256, training

from lrcompress.checkpoint import LoadOptions
from lrcompress.errors import DataError, LRCompressError, OptionError, OutputError, TrainingError
from lrcompress.pipeline import CompressOptions, LayerOptions, MaxDrop, Observer, compress
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
    "learning rate": (lambda shop: {"lr": 0.5}, "another lr: 0.001, not 0.5"),
    "epochs": (lambda shop: {"epochs": 7}, "another epochs: 2, not 7"),
    "tolerance": (lambda shop: {"policy": Tolerance(0.11)}, "another policy"),
    "layers": (lambda shop: {"values": {"layers": LayerOptions(exclude=("5",))}}, "another plan"),
    "calibration": (
        lambda shop: {"values": {"calibration": Calibration("data", 20)}, "policy": UniformRank(3)},
        "another",
    ),
    "checkpoint": (other_checkpoint, "another checkpoint"),
    "number of images": (more_images, "another images: 60, not 66"),
    "data": (other_data, "another data: 'data', not 'images'"),
}


@pytest.mark.parametrize(("change", "words"), OTHERS.values(), ids=OTHERS.keys())
def test_a_state_is_not_for_another_run(stopped, change, words):
    changes = change(stopped)
    before = listing(stopped)
    values = {"resume": True, **changes.pop("values", {})}
    with pytest.raises(OptionError, match=r"`new\.unfinished\.pt`") as refused:
        fine_tune(stopped, values=values, **changes)
    assert words in refused.value.message
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
    assert len(failures) == STEPS
    assert sum("could not be saved: cannot write: No space left" in text for text in said) == STEPS
    assert sha256(shop / "new.safetensors") == sha256(shop / "tuned.safetensors")


def test_an_error_of_another_process_is_explained(shop, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:3\nand more")

    monkeypatch.setattr(PLACE, broken)
    with pytest.raises(RuntimeError, match="Connection closed") as alone:
        fine_tune(shop)
    assert not isinstance(alone.value, LRCompressError)
    monkeypatch.setattr("lrcompress.pipeline.fine_tuning.world", lambda: (0, 2))
    with pytest.raises(TrainingError, match=r"another process of the run has ended: \[gloo\] Connection") as explained:
        fine_tune(shop)
    assert "--resume" in explained.value.hint


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
    # Alone the batches would be divided otherwise, and the result another one.
    assert_refused(run("compress", *arguments, "--resume"), "another processes: 2, not 1")


def test_of_several_processes_the_first_one_writes(shop, monkeypatch):
    before = listing(shop)
    monkeypatch.setattr("lrcompress.pipeline.compression.world", lambda: (1, 2))
    assert fine_tune(shop) == {}
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
