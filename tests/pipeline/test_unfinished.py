import functools
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from checkpoint_files import Marking, write_zip
from workshop import listing

from lrcompress.errors import OptionError, OutputError, TrainingError
from lrcompress.pipeline.unfinished import (
    VERSION,
    UnfinishedRun,
    describe_unfinished,
    is_unfinished,
    refuse_to_lose,
    stop_on_signal,
    telling_how_to_go_on,
    unfinished_path,
)

SETTINGS = {"lr": 0.1, "max_rank": None, "flip": True, "exclude": ["a", "b"]}
RECORD = {"epoch": 1, "loss": 0.5, "held_out_accuracy": 0.75}
STATE = {
    "step": 7,
    "steps": 20,
    "epoch": 2,
    "over": False,
    "elapsed": 3.5,
    "parameters": 90,
    "warnings": ["the loss has risen"],
    "model": {"a": torch.arange(4.0)},
    "selection": {"log": [RECORD]},
}
PLAN = {"source_sha256": "abc"}


@pytest.fixture
def unfinished(tmp_path):
    return UnfinishedRun.beside(tmp_path / "small.safetensors", SETTINGS, command="lrcompress compress 'a b.pt'")


def write(unfinished, **changes):
    unfinished.write(plan=PLAN, kappas={"layer": 2.5}, state={**STATE, **changes})


def test_a_state_lies_beside_the_output_and_is_read_as_it_was_written(unfinished, tmp_path):
    assert unfinished.path == tmp_path / "small.unfinished.pt" == unfinished_path(tmp_path / "small.safetensors")
    assert unfinished.read() is None
    write(unfinished)
    assert [path.name for path in tmp_path.iterdir()] == ["small.unfinished.pt"]
    read = unfinished.read()
    assert torch.equal(read["state"]["model"]["a"], STATE["model"]["a"])
    assert {**read["state"], "model": None} == {**STATE, "model": None}
    assert (read["plan"], read["kappas"], read["processes"]) == (PLAN, {"layer": 2.5}, 1)


def test_a_new_state_replaces_the_old_one(unfinished):
    for step in (1, 2):
        write(unfinished, step=step)
    assert unfinished.read()["state"]["step"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.2}, ": --lr 0.2, was 0.1"),
        ({"max_rank": 5}, ": --max-rank 5, was no --max-rank"),
        ({"new": 1}, ": --new 1, was no --new"),
        ({"exclude": []}, ": no --exclude, was --exclude a --exclude b"),
        ({"lr": 0.2, "flip": False}, ": --lr 0.2, was 0.1; --no-flip, was --flip"),
        (
            {"lr": 0.2, "max_rank": 5, "flip": False, "exclude": [], "a": 1, "b": 2},
            "; no --exclude, was --exclude a --exclude b; and 2 more",
        ),
    ],
    ids=str,
)
def test_the_state_of_a_run_with_other_settings_is_refused_and_says_which_options(unfinished, changes, words):
    write(unfinished)
    other = UnfinishedRun(unfinished.path, SETTINGS | changes, "")
    with pytest.raises(OptionError) as refused:
        other.read()
    assert refused.value.message.startswith(f"`{unfinished.path}` is the state of another run: ")
    assert refused.value.message.endswith(words)
    assert "--overwrite" in refused.value.hint
    assert "lrcompress inspect" in refused.value.hint
    assert unfinished.read()["state"]["step"] == 7  # still there


def test_settings_that_become_known_later_are_compared_then(unfinished):
    write(unfinished.knowing({"images": 60}))
    content = unfinished.read()
    unfinished.knowing({"images": 60}).check(content)
    with pytest.raises(OptionError, match="66 training images, was 60 training images"):
        unfinished.knowing({"images": 66}).check(content)


@pytest.mark.parametrize(("over", "epoch"), [(False, 2), (True, 1)])
def test_a_state_says_how_far_it_is_what_it_has_reached_and_how_it_goes_on(unfinished, over, epoch):
    write(unfinished, over=over)
    assert is_unfinished(unfinished.path)
    told = describe_unfinished(unfinished.path)
    assert (told["step"], told["steps"], told["epoch"], told["training_is_over"]) == (7, 20, epoch, over)
    assert (told["log"], told["warnings"], told["parameters"]) == ([RECORD], ["the loss has risen"], 90)
    assert told["settings"] == SETTINGS
    assert (told["command"], told["resume"]) == (
        "lrcompress compress 'a b.pt'",
        "lrcompress compress 'a b.pt' --resume",
    )


def test_a_run_that_was_called_from_python_goes_on_with_a_call(unfinished, tmp_path):
    called = UnfinishedRun.beside(tmp_path / "other.safetensors", {}, command="lrcompress.compress(…)")
    write(called)
    assert describe_unfinished(called.path)["resume"] == "the same call with resume=True"


@pytest.mark.parametrize("name", ["small.pt", "small.unfinished.safetensors", "nowhere.unfinished.pt"])
def test_what_is_named_otherwise_or_is_not_there_is_no_state(tmp_path, name):
    if "nowhere" not in name:
        (tmp_path / name).write_text("")
    assert not is_unfinished(tmp_path / name)


@pytest.mark.parametrize("there", [True, False])
def test_whoever_interrupts_or_has_a_full_disk_is_told_of_a_state_that_is_there(unfinished, there):
    if there:
        write(unfinished)
    telling = functools.partial(telling_how_to_go_on, unfinished.path, "--resume goes on")
    with pytest.raises(TrainingError if there else KeyboardInterrupt) as interrupted, telling():
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match="the disk is full") as full, telling():
        raise OutputError("the disk is full", hint="name another place")
    assert full.value.hint == ("make room; --resume goes on" if there else "name another place")
    if there:
        assert interrupted.value.hint == "--resume goes on"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": cut,
    "random": lambda path: path.write_bytes(os.urandom(3000)),
    "text": lambda path: path.write_text("name,value\n1,2\n" * 50),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a checkpoint": lambda path: torch.save({"weight": torch.zeros(3)}, path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "a list": lambda path: torch.save([1, 2], path),
    "a number": lambda path: torch.save(5, path),
    "without a plan": lambda path: torch.save({"version": VERSION, "settings": {}, "state": {}}, path),
    "malicious": lambda path: write_zip(Marking(path.with_name("marker")), path),
}


@pytest.mark.parametrize("make_bad", BAD.values(), ids=BAD.keys())
def test_what_is_no_state_is_refused_and_not_executed(unfinished, make_bad):
    write(unfinished)
    make_bad(unfinished.path)
    with pytest.raises(OutputError, match="is no state of a run, or damaged") as refused:
        unfinished.read()
    assert "--overwrite" in refused.value.hint
    assert not unfinished.path.with_name("marker").exists()


def test_the_state_of_another_version_is_refused(unfinished):
    torch.save({"version": 99, "settings": SETTINGS, "state": STATE}, unfinished.path)
    with pytest.raises(OptionError, match="another version") as refused:
        unfinished.read()
    assert refused.value.hint


def test_where_the_disk_is_full_the_old_state_stays(unfinished, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    write(unfinished)
    before = listing(tmp_path)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(unfinished, step=8)
    assert listing(tmp_path) == before


def test_of_several_processes_the_first_one_writes(unfinished, tmp_path, monkeypatch):
    monkeypatch.setattr("lrcompress.pipeline.unfinished.world", lambda: (1, 2))
    write(unfinished)
    assert listing(tmp_path) == {}
    monkeypatch.setattr("lrcompress.pipeline.unfinished.world", lambda: (0, 2))
    write(unfinished)
    assert (unfinished.read()["state"]["step"], unfinished.read()["processes"]) == (7, 2)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_state_is_lost_only_if_that_is_said(unfinished, tmp_path, there, resume, overwrite):
    if there:
        write(unfinished)
    if there and not resume and not overwrite:
        with pytest.raises(OptionError, match="is the state of a run that has not ended") as refused:
            refuse_to_lose(tmp_path / "small.safetensors", resume=resume, overwrite=overwrite)
        assert "--resume" in refused.value.hint
        assert "--overwrite" in refused.value.hint
    else:
        refuse_to_lose(tmp_path / "small.safetensors", resume=resume, overwrite=overwrite)


def test_a_request_to_end_by_another_program_is_told_the_same(unfinished):
    write(unfinished)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingError) as told, telling_how_to_go_on(unfinished.path, "--resume goes on"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert told.value.hint == "--resume goes on"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def ctrl_c():
    """Ctrl-C as at a terminal: a process in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_the_first_signal_asks_and_the_second_one_ends(number):
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    with stop_on_signal() as is_stopped:
        assert not is_stopped()
        os.kill(os.getpid(), number)
        assert is_stopped()
        assert {one: signal.getsignal(one) for one in before} == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {one: signal.getsignal(one) for one in before} == before


@pytest.mark.usefixtures("ctrl_c")
def test_of_several_processes_none_is_ended_by_a_request_that_comes_twice(monkeypatch):
    monkeypatch.setattr("lrcompress.pipeline.unfinished.world", lambda: (1, 2))
    with stop_on_signal() as is_stopped:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert is_stopped()


@pytest.mark.usefixtures("ctrl_c")
def test_a_request_that_nobody_has_asked_about_ends_the_process_unless_an_error_does():
    with pytest.raises(KeyboardInterrupt), stop_on_signal():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(ZeroDivisionError), stop_on_signal():
        _ = 1 / (os.kill(os.getpid(), signal.SIGINT) is not None)


def test_handlers_are_put_back_after_an_error_too():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stop_on_signal():
        _ = 1 / (signal.getsignal(signal.SIGTERM) is before)
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_nobody_is_ever_asked():
    answers = []

    def ask():
        with stop_on_signal() as is_stopped:
            answers.append(is_stopped())

    def ask_telling():
        with telling_how_to_go_on(Path("nowhere"), ""):
            ask()

    thread = threading.Thread(target=ask_telling)
    thread.start()
    thread.join()
    assert answers == [False]
