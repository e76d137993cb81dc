import pytest
import torch
import torch.distributed as dist
from networks import pattern_images
from workshop import training

from lrcompress.dlrt import world
from lrcompress.errors import OptionError, TrainingError
from lrcompress.pipeline import joined_processes
from lrcompress.pipeline.processes import check_processes


@pytest.mark.parametrize("size", [None, "1"])
@pytest.mark.parametrize("device", ["cpu", "cuda:3"])
def test_alone_nothing_is_joined(monkeypatch, device, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with joined_processes(device) as own:
        assert own == device
        assert not dist.is_initialized()
        assert world() == (0, 1)


@pytest.fixture
def joins(monkeypatch):
    """Two processes as `torchrun` starts them, this one the second; takes down how they would be joined."""
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("lrcompress.pipeline.processes.rendezvous", lambda _: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: calls.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: calls.append(f"device {number}"))
    return calls


def test_processors_talk_by_gloo(joins):
    with joined_processes("cpu") as own:
        assert own == "cpu"
        assert joins == ["gloo"]
    assert joins == ["gloo", "destroyed"]


def test_every_process_of_a_machine_has_a_gpu_of_its_own_and_they_talk_by_nccl(joins, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with joined_processes("cuda") as own:
        assert own == "cuda:1"
    assert joins == ["device 1", "nccl", "destroyed"]


def test_more_processes_than_gpus_are_refused(joins, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(OptionError, match="2 processes on this machine, but 1 GPUs") as refused,
        joined_processes("cuda"),
    ):
        pass
    assert "torchrun" in refused.value.hint
    assert joins == []


def test_the_first_process_of_a_machine_with_too_few_gpus_refuses_too(joins, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with (
        pytest.raises(OptionError, match="2 processes on this machine, but 1 GPUs"),
        joined_processes("cuda"),
    ):
        pass
    assert joins == []


def test_they_are_left_after_an_error_too(joins):
    with pytest.raises(ValueError, match="whatever"), joined_processes("cpu"):
        raise ValueError("whatever")
    assert joins == ["gloo", "destroyed"]


@pytest.mark.parametrize("error", [TrainingError("diverged"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_of_several_processes_with_an_error_the_first_one_tells_and_the_others_end(joins, monkeypatch, error):
    store = dist.HashStore()
    for rank, expected in ((1, type(error)), (0, SystemExit), (2, SystemExit)):
        monkeypatch.setattr("lrcompress.pipeline.processes.rendezvous", lambda _, rank=rank: iter([(store, rank, 3)]))
        with pytest.raises(expected) as raised, joined_processes("cpu"):
            raise error
    assert raised.value.code == 1
    assert joins == ["gloo", "destroyed"] * 3


def test_where_process_0_has_gone_with_its_store_an_error_is_told(joins, monkeypatch):
    class Gone:
        def compare_set(self, *_):
            raise RuntimeError("Broken pipe")

    monkeypatch.setattr(dist, "PrefixStore", lambda _, store: store)
    monkeypatch.setattr("lrcompress.pipeline.processes.rendezvous", lambda _: iter([(Gone(), 1, 2)]))
    with pytest.raises(TrainingError, match="diverged"), joined_processes("cpu"):
        raise TrainingError("diverged")


LOST = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3\nand more"


@pytest.mark.parametrize("by_whom", ["here", "the caller"])
def test_what_is_noticed_of_another_process_that_has_ended_is_explained(joins, monkeypatch, by_whom):
    monkeypatch.setattr(dist, "is_initialized", lambda: by_whom == "the caller")
    with pytest.raises(TrainingError) as explained, joined_processes("cpu"):
        raise RuntimeError(LOST)
    assert explained.value.message == "another process of the run has ended"
    assert "--resume" in explained.value.hint


def test_other_errors_are_not_taken_for_that(joins, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for error in (RuntimeError("a fault of this program"), TrainingError("it timed out")):
        with pytest.raises(type(error)) as raised, joined_processes("cpu"):
            raise error
        assert raised.value is error


def test_alone_an_error_of_a_connection_is_none_of_another_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError) as raised, joined_processes("cpu"):
        raise RuntimeError(LOST)
    assert type(raised.value) is RuntimeError


@pytest.mark.parametrize(("then", "now"), [(2, 1), (1, 2), (4, 1)])
def test_a_run_goes_on_with_another_number_of_processes_and_says_that_the_bytes_differ(monkeypatch, then, now):
    told = []
    monkeypatch.setattr("lrcompress.pipeline.processes.world", lambda: (0, now))
    check_processes(then, pattern_images(60), training(), on_notice=told.append)  # 54 in batches of 20, 20 and 14
    (notice,) = told
    assert "to rounding only" in notice


def test_a_run_goes_on_with_the_same_number_of_processes_without_a_word():
    told = []
    check_processes(1, pattern_images(60), training(), on_notice=told.append)
    assert told == []


@pytest.mark.parametrize(("then", "now"), [(8, 1), (1, 8)])
def test_a_run_whose_steps_would_be_others_is_refused(monkeypatch, then, now):
    # 14 images are too few for eight processes: two steps, not three.
    monkeypatch.setattr("lrcompress.pipeline.processes.world", lambda: (0, now))
    monkeypatch.setattr("lrcompress.dlrt.held_out.world", lambda: (0, now))
    with pytest.raises(OptionError, match="steps per epoch") as refused:
        check_processes(then, pattern_images(60), training(), on_notice=print)
    assert f"started with {then} process" in refused.value.message
    assert f"--nproc-per-node {then}" in refused.value.hint


def test_processes_that_have_been_joined_already_are_left_to_who_did(joins, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with joined_processes("cuda:1") as own:
        assert own == "cuda:1"
    assert joins == []
