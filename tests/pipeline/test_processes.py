import pytest
import torch
import torch.distributed as dist

from lrcompress.dlrt import world
from lrcompress.errors import OptionError
from lrcompress.pipeline import joined_processes


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
    monkeypatch.setattr(dist, "init_process_group", calls.append)
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


def test_they_are_left_after_an_error_too(joins):
    with pytest.raises(ValueError, match="whatever"), joined_processes("cpu"):
        raise ValueError("whatever")
    assert joins == ["gloo", "destroyed"]


def test_processes_that_have_been_joined_already_are_left_to_who_did(joins, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with joined_processes("cuda:1") as own:
        assert own == "cuda:1"
    assert joins == []
