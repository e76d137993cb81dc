import os
import signal
import threading

import pytest
import torch
from checkpoint_files import Marking, write_zip
from workshop import listing

from lrcompress.errors import OptionError, OutputError
from lrcompress.pipeline.unfinished import UnfinishedRun, refuse_to_lose, stop_on_signal, unfinished_path

SETTINGS = {
    "lr": 0.1,
    "plan": [["layer", "matrix", [3]]] * 50,
    "augmentation": {"crop_scale": (0.5, 1.0)},
    "steps": None,
}
STATE = {"step": 7, "model": {"a": torch.arange(4.0)}, "log": [{"loss": None}], "fraction": None}


@pytest.fixture
def unfinished(tmp_path):
    return UnfinishedRun.beside(tmp_path / "small.safetensors", SETTINGS)


def test_a_state_lies_beside_the_output_and_is_read_as_it_was_written(unfinished, tmp_path):
    assert unfinished.path == tmp_path / "small.unfinished.pt" == unfinished_path(tmp_path / "small.safetensors")
    assert unfinished.read() is None
    unfinished.write(STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["small.unfinished.pt"]
    read = unfinished.read()
    assert torch.equal(read["model"]["a"], STATE["model"]["a"])
    assert {**read, "model": None} == {**STATE, "model": None}


def test_a_new_state_replaces_the_old_one(unfinished):
    for step in (1, 2):
        unfinished.write({"step": step})
    assert unfinished.read() == {"step": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.2}, "another lr: 0.1, not 0.2"),
        ({"steps": 5}, "another steps: None, not 5"),
        ({"new": 1}, "another new: None, not 1"),
        ({"plan": [["layer", "matrix", [4]]] * 50}, "another plan"),
    ],
    ids=str,
)
def test_the_state_of_a_run_with_other_settings_is_refused_and_says_which(unfinished, changes, words):
    unfinished.write(STATE)
    other = UnfinishedRun(unfinished.path, SETTINGS | changes)
    with pytest.raises(OptionError) as refused:
        other.read()
    assert refused.value.message.endswith(words)
    assert "--overwrite" in refused.value.hint
    assert unfinished.read()["step"] == 7  # still there


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
    "malicious": lambda path: write_zip(Marking(path.with_name("marker")), path),
}


@pytest.mark.parametrize("write", BAD.values(), ids=BAD.keys())
def test_what_is_no_state_is_refused_and_not_executed(unfinished, write):
    unfinished.write(STATE)
    write(unfinished.path)
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

    unfinished.write({"step": 1})
    before = listing(tmp_path)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        unfinished.write({"step": 2})
    assert listing(tmp_path) == before


def test_of_several_processes_the_first_one_writes(unfinished, tmp_path, monkeypatch):
    monkeypatch.setattr("lrcompress.pipeline.unfinished.world", lambda: (1, 2))
    unfinished.write(STATE)
    assert listing(tmp_path) == {}
    monkeypatch.setattr("lrcompress.pipeline.unfinished.world", lambda: (0, 2))
    unfinished.write(STATE)
    assert unfinished.read()["step"] == 7


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_state_is_lost_only_if_that_is_said(unfinished, tmp_path, there, resume, overwrite):
    if there:
        unfinished.write(STATE)
    if there and not resume and not overwrite:
        with pytest.raises(OptionError, match="is the state of a run that has not ended") as refused:
            refuse_to_lose(tmp_path / "small.safetensors", resume=resume, overwrite=overwrite)
        assert "--resume" in refused.value.hint
        assert "--overwrite" in refused.value.hint
    else:
        refuse_to_lose(tmp_path / "small.safetensors", resume=resume, overwrite=overwrite)


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

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]
